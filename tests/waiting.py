"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable


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
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {description}\n{detail()}")
        time.sleep(0.02)
