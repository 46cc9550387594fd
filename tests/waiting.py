"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable

_INTERVAL_S, _MAX_INTERVAL_S = 0.02, 2.0


def wait_until(
    predicate: Callable[[], bool],
    *,
    timeout_s: float,
    description: str,
    detail: Callable[[], str] = str,
) -> None:
    """Return as soon as ``predicate`` is true.

    Raises:
        AssertionError: It was not, in all that time; the message ends with ``detail()``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        asked_at = time.monotonic()
        if predicate():
            return
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}\n{detail()}")
        # A predicate may run a command: the rest of the machine gets most of the time.
        time.sleep(min(max(_INTERVAL_S, 2 * (now - asked_at)), _MAX_INTERVAL_S))
