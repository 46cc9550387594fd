"""Blocking calls that a cancelled job does not wait for.

Name resolution, TLS handshakes and other libraries' requests cannot be interrupted, so a thread of
their own makes them while the caller looks at the job's state.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
CheckStop = Callable[[], object]
"""Raises an error if the work is to stop; called several times a second."""

_POLL_S = 0.25


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def in_background(
    source: Generator[Item, None, None], check_stop: CheckStop
) -> Generator[Item, None, None]:
    """Yield the items of a generator that a thread runs.

    A caller that ends early leaves the thread behind: it ends with its current call, and its items
    are dropped.

    Args:
        source: The generator, which makes blocking calls.
        check_stop: Called for each item, and while none comes.
    """
    items: Queue[Item | _End] = Queue(maxsize=4)
    left = Event()
    Thread(target=_run, args=(source, items, left), name="download", daemon=True).start()
    try:
        while True:
            check_stop()
            try:
                item = items.get(timeout=_POLL_S)
            except Empty:
                continue
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                return
    finally:
        left.set()


def call_in_background(
    function: Callable[[], Item], check_stop: CheckStop, timeout_s: float
) -> Item:
    """Return the result of a call that a thread makes.

    Raises:
        TimeoutError: There is none in time.
    """
    due_s = time.monotonic() + timeout_s

    def check() -> None:
        check_stop()
        if time.monotonic() > due_s:
            raise TimeoutError(f"there was no answer within {timeout_s:,.0f} s")

    with closing(in_background((function() for _ in range(1)), check)) as results:
        return next(results)


def wait(seconds: float, check_stop: CheckStop) -> None:
    """Sleep, unless the work is to stop."""
    end_s = time.monotonic() + seconds
    while (rest_s := end_s - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(rest_s, _POLL_S))


def _run(source: Generator[Item, None, None], items: "Queue[Item | _End]", left: Event) -> None:
    error: BaseException | None = None
    try:
        with closing(source):
            for item in source:
                if not _put(item, items, left):
                    return
    except BaseException as raised:  # noqa: BLE001 - the caller's thread raises it
        error = raised
    _put(_End(error), items, left)


def _put(item: "Item | _End", items: "Queue[Item | _End]", left: Event) -> bool:
    """Hand an item over; return whether the caller is still there."""
    while not left.is_set():
        try:
            items.put(item, timeout=_POLL_S)
        except Full:
            continue
        return True
    return False
