"""Work that threads share, and their memory: many small things at a time, or a large one."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from threading import Condition
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class MemoryBudget:
    """So many bytes.

    Args:
        max_bytes: What is handed out at a time; somebody who wants more gets it alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._most = max_bytes
        self._taken = 0
        self._changed = Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Hold so many bytes; waits until they are free."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + count <= self._most)
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()


def in_threads(function: Callable[[_Given], _Made], items: Iterable[_Given]) -> Iterator[_Made]:
    """What a function makes of each item, in their order; a few are worked on ahead.

    For what releases Python's lock, as decoding, hashing and the store do.
    """
    threads, rest = min(32, os.cpu_count() or 1), iter(items)
    with ThreadPoolExecutor(threads) as pool:
        # Submitting all at once would hold a future, and its result, for each of a million.
        waiting = [pool.submit(function, item) for item in islice(rest, 2 * threads)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(rest, 1)]
