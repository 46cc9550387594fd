"""Thread pools within a memory budget: many small items at a time, or one large item."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from threading import Condition
from typing import TypeVar

# How long a cancel of the user waits at most.
_CHECK_EVERY_S = 0.2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class MemoryBudget:
    """A number of bytes that threads reserve from.

    Args:
        max_bytes: The maximum reserved at a time. A larger request runs exclusively.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reserved = 0
        self._changed = Condition()

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Reserve bytes while the context lasts; wait until they are available."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_available(count))
            self._reserved += count
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= count
                self._changed.notify_all()

    def _is_available(self, count: int) -> bool:
        return not self._reserved or self._reserved + count <= self._max_bytes


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    threads: int,
    *,
    check_stop: Callable[[], object] = lambda: None,
    abort: Callable[[], object] = lambda: None,
) -> Iterator[_Result]:
    """Yield a function's result for each item, in order; a few are computed ahead.

    Threads help only if the function releases Python's lock.

    Args:
        function: Called in the threads.
        items: Its arguments.
        threads: The number of threads.
        check_stop: Called a few times a second; an exception that it raises ends the iteration.
        abort: Called when the iteration ends early, to end the calls that still run.
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        # Submitting all at once would hold a future, and its result, for each of a million items.
        waiting = deque(pool.submit(function, item) for item in islice(rest, 2 * threads))
        try:
            while waiting:
                check_stop()
                if wait([waiting[0]], _CHECK_EVERY_S).done:
                    yield waiting.popleft().result()
                    waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
        except BaseException:
            abort()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
