"""What one start of a stage made, and how fast: measured while it works."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkDone:
    """What one start of a stage made.

    Attributes:
        units: How many.
        unit_s: Seconds each of them took; None where that was not measured apart from the rest.
    """

    units: int = 0
    unit_s: float | None = None


class RateMeter:
    """Measures what a unit takes between reports of how many are done.

    Args:
        clock: Seconds, always rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[int, float] | None = None
        self._units, self._seconds = 0, 0.0

    def at(self, done: int) -> None:
        """So many are done; fewer than before where something was begun anew."""
        now = self._clock()
        if self._last is not None and done > self._last[0]:
            self._units += done - self._last[0]
            self._seconds += now - self._last[1]
        self._last = (done, now)

    def pause(self) -> None:
        """Something else is done until the next report."""
        self._last = None

    @property
    def unit_s(self) -> float | None:
        """Seconds a unit; None before the second report."""
        return self._seconds / self._units if self._units else None
