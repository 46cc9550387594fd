"""The trainer's side of its two channels: events out, requests to stop in."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.events import Event, Heartbeat, PhaseName, Progress, TrainerPhase
from worker.trainer.errors import InterruptedRun

Emit = Callable[[Event], None]

# A reader sees no more than this; more events would only load the broker.
_MAX_PER_SECOND = 10
_HEARTBEAT_EVERY_S = 1.0
# The weight of a new speed in the smoothed one: about the last ten steps count.
_NEW_SPEED = 0.1


@contextmanager
def phase(emit: Emit, name: PhaseName, step: int | None = None) -> Iterator[None]:
    """Emit how long a part of the work took, once it is done."""
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
        # An unbuffered write may write part of a line only.
        while line:
            line = line[self._file.write(line) :]

    def beat(self) -> None:
        """Emit a heartbeat, unless an event was emitted within the last second."""
        if time.monotonic() - self._written_at > _HEARTBEAT_EVERY_S:
            self.emit(Heartbeat())

    def close(self) -> None:
        """Close the descriptor: the reader sees the end."""
        self._file.close()


class StopSwitch:
    """Whether the run was asked to stop; a signal handler sets it.

    Args:
        beat: Called whenever the run checks the switch, which shows that it is alive.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self.beat = beat
        self.is_set = False
        self.waits_for_request = True

    def __call__(self, *_signal: object) -> None:
        """Ask the run to stop.

        Raises:
            InterruptedRun: No request is running, so that there is nothing to save first.
        """
        self.is_set = True
        if self.waits_for_request:
            raise InterruptedRun

    def check(self) -> None:
        """Stop here if asked to; for places where there is nothing to save.

        Raises:
            InterruptedRun: The run was asked to stop.
        """
        self.beat()
        if self.is_set:
            raise InterruptedRun


class ProgressMeter:
    """Emits progress with its speed, at most ten times a second.

    Args:
        emit: Takes the events.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._emitted_at: float | None = None
        self._measured_at = clock()
        self._per_second: float | None = None
        self._done = 0

    def start_from(self, done: int) -> None:
        """Leave what is already done, and the time until now, out of the speed."""
        self._done, self._measured_at = done, self._clock()

    def report(self, progress: Progress, *, always: bool = False) -> None:
        """Emit progress, unless some was emitted a moment ago and this is not the last.

        Args:
            progress: Without a speed.
            always: Emit it in any case.
        """
        now = self._clock()
        elapsed_s = max(now - self._measured_at, 1e-6)
        speed = (progress.done - self._done) / elapsed_s
        old = self._per_second
        self._per_second = speed if old is None else old + _NEW_SPEED * (speed - old)
        self._measured_at, self._done = now, progress.done
        recent = self._emitted_at is not None and now - self._emitted_at < 1 / _MAX_PER_SECOND
        if recent and not always and progress.done < progress.total:
            return
        self._emitted_at = now
        self._emit(progress.model_copy(update={"per_second": self._per_second}))
