"""Shares of what accounts hold at a time, so that none of them takes what the others need.

An account is a tenant, with all its keys, or an operator's key; see ``Caller.account``.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from console.errors import TooManyError

T = TypeVar("T")


class Share:
    """A limit with a fair share for each account: it may hold as many as remain free.

    Alone it gets half of the capacity, two that start together get a third each, and so on. A few
    are every account's, even when nothing is free.

    Args:
        things: What is held, for messages.
        capacity: Maximum of all accounts together, but for those few.
        always: How many every account may hold.
        retry_after_s: When a refused account may retry.
    """

    def __init__(
        self, things: str, capacity: int, *, always: int = 4, retry_after_s: int = 10
    ) -> None:
        self._things, self._capacity, self._always = things, capacity, always
        self._retry_after_s = retry_after_s
        self._held: Counter[str] = Counter()

    def take(self, account: str, count: int = 1) -> None:
        """Take one more for an account, or several.

        Raises:
            TooManyError: The account has used up its share.
        """
        held, free = self._held[account] + count, self._capacity - self._held.total() - count
        if held > max(free, self._always):
            problem = (
                f"this account has {held - count:,} {self._things}, and its share is no larger"
            )
            raise TooManyError(f"{problem}; wait, or close some", self._retry_after_s)
        self._held[account] = held

    def give_back(self, account: str, count: int = 1) -> None:
        """Give one back, or several."""
        self._held[account] -= count
        if not self._held[account]:
            del self._held[account]

    @contextmanager
    def hold(self, account: str, count: int = 1) -> Iterator[None]:
        """Take one, or several, and give them back at the end of the context.

        Raises:
            TooManyError: The account has used up its share.
        """
        self.take(account, count)
        try:
            yield
        finally:
            self.give_back(account, count)


class AccountCache(Generic[T]):
    """Values by id, of each account the most recently used ones; not thread-safe.

    Args:
        max_each: Maximum of an account.
        discard: Called with a value that makes room for a newer one of its account.
    """

    def __init__(self, max_each: int, discard: Callable[[T], None] = lambda _: None) -> None:
        self._max_each, self._discard = max_each, discard
        self._values: dict[str, tuple[str, T]] = {}
        self._ids: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)

    def add(self, account: str, value_id: str, value: T) -> None:
        """Add a value of an account."""
        self._values[value_id] = account, value
        ids = self._ids[account]
        ids[value_id] = None
        if len(ids) > self._max_each:
            oldest, _ = ids.popitem(last=False)
            self._discard(self._values.pop(oldest)[1])

    def get(self, value_id: str) -> T | None:
        """Return a value, which is the most recently used one then; None for an unknown id."""
        account, value = self._values.get(value_id, ("", None))
        if account in self._ids:
            self._ids[account].move_to_end(value_id)
        return value

    def pop(self, value_id: str) -> T | None:
        """Remove a value and return it; None for an unknown id."""
        account, value = self._values.pop(value_id, ("", None))
        self._ids[account].pop(value_id, None)
        if not self._ids[account]:
            del self._ids[account]
        return value

    def of(self, account: str) -> list[T]:
        """Return an account's values."""
        return [self._values[value_id][1] for value_id in self._ids.get(account, ())]
