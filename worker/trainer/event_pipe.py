"""The trainer's side of its two channels: events out, the wish to stop in."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.events import Event, Heartbeat, PhaseName, Progress, TrainerPhase
from worker.trainer.errors import InterruptedRun

Emit = Callable[[Event], None]

# More events a second than this help nobody and load the broker.
_MOST_PER_SECOND = 10
_BEAT_EVERY_S = 1.0
# How much a new speed counts against the smoothed one.
_NEW_SPEED = 0.1


@contextmanager
def phase(emit: Emit, name: PhaseName, step: int | None = None) -> Iterator[None]:
    """Tell, once it is done, how long a part of the work took."""
    began_at, began = time.time(), time.monotonic()
    yield
    seconds = time.monotonic() - began
    emit(TrainerPhase(name=name, began_at=began_at, seconds=seconds, step=step))


class EventPipe:
    """Writes events, a JSON line each, to an inherited file descriptor.

    Args:
        descriptor: Open for writing.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._written_at = 0.0

    def emit(self, event: Event) -> None:
        """Write one event, at once."""
        self._written_at = time.monotonic()
        line = event.model_dump_json().encode() + b"\n"
        # An unbuffered write may take part of a line only.
        while line:
            line = line[self._file.write(line) :]

    def beat(self) -> None:
        """Tell that the trainer is at work, unless it said something a moment ago."""
        if time.monotonic() - self._written_at > _BEAT_EVERY_S:
            self.emit(Heartbeat())

    def close(self) -> None:
        """Close the descriptor: readers see the end."""
        self._file.close()


class StopSwitch:
    """Whether the run was asked to stop; a signal handler sets it.

    Args:
        beat: Called whenever the run asks: it is at work.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self.beat = beat
        self.is_set = False
        self.waits_for_request = True

    def __call__(self, *_signal: object) -> None:
        """Ask the run to stop.

        Raises:
            InterruptedRun: Nothing runs, so that there is nothing to save first.
        """
        self.is_set = True
        if self.waits_for_request:
            raise InterruptedRun

    def check(self) -> None:
        """Stop here if asked to; for places where nothing needs saving.

        Raises:
            InterruptedRun: It was asked to.
        """
        self.beat()
        if self.is_set:
            raise InterruptedRun


class ProgressMeter:
    """Tells progress with its speed, seldom enough.

    Args:
        emit: Takes the events.
        clock: Seconds, always rising.
    """

    def __init__(self, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._last_told: float | None = None
        self._last_seen = clock()
        self._per_second: float | None = None
        self._done = 0

    def starts_at(self, done: int) -> None:
        """What is done already does not count for the speed."""
        self._done, self._last_seen = done, self._clock()

    def tell(self, progress: Progress, *, always: bool = False) -> None:
        """Tell it, unless something was told a moment ago and it is not the last.

        Args:
            progress: Without a speed.
            always: Tell it in any case.
        """
        now = self._clock()
        elapsed = max(now - self._last_seen, 1e-6)
        speed = (progress.done - self._done) / elapsed
        old = self._per_second
        self._per_second = speed if old is None else old + _NEW_SPEED * (speed - old)
        self._last_seen, self._done = now, progress.done
        recent = self._last_told is not None and now - self._last_told < 1 / _MOST_PER_SECOND
        if recent and not always and progress.done < progress.total:
            return
        self._last_told = now
        self._emit(progress.model_copy(update={"per_second": self._per_second}))
