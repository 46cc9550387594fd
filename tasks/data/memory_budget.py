"""Thread pools within a memory budget: many small items at a time, or one large item."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from threading import Condition
from typing import TypeVar

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
    function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """Yield a function's result for each item, in order; a few are computed ahead.

    Threads help only if the function releases Python's lock, as decoding, hashing and the store do.
    """
    threads, rest = min(32, os.cpu_count() or 1), iter(items)
    with ThreadPoolExecutor(threads) as pool:
        # Submitting all at once would hold a future, and its result, for each of a million items.
        waiting = [pool.submit(function, item) for item in islice(rest, 2 * threads)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(rest, 1)]
