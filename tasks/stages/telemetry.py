"""What a start of a stage tells those who watch the fleet: counts, and the spans of its trace.

Counts travel with what the start writes (``tasks/stages/event_buffer.py``), spans by themselves. Neither holds
the stage up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from routing.classes import MemoryClass
from tasks.eta.history import waited_s
from tasks.events import CheckpointSaved, Event, Progress, TrainerPhase, TrainerStarted
from tasks.metrics import (
    STAGE_ENDS,
    STAGE_SECONDS,
    STEPS,
    TRAINER_STARTS,
    WAIT_SECONDS,
    Counts,
    class_label,
)
from tasks.stages.event_buffer import EventBuffer
from tasks.state.record import JobRecord
from tasks.tracing.spans import ROOT, Span, Trace, job_span

# A span is sent when it is over; those who look at a run of hours see it go on.
_LONGEST_CHUNK_S = 300.0


@dataclass
class _Chunk:
    """Steps one after the other, with nothing else between."""

    began_at: float
    first: int
    done: int
    ended_at: float


class Telemetry:
    """One start's counts and spans.

    Args:
        record: The job, as the start began.
        stage: The stage.
        queue: Where its message came from.
        memory_class: That of the worker's GPU.
        outbox: Takes the counts.
        trace: Takes the spans; None where nobody wants them.
    """

    def __init__(
        self,
        record: JobRecord,
        stage: str,
        queue: str,
        memory_class: MemoryClass | None,
        outbox: EventBuffer,
        trace: Trace | None,
    ) -> None:
        self._record, self._stage, self._queue = record, stage, queue
        self._class, self._type = class_label(memory_class), record.job.training.type
        self._outbox, self._trace = outbox, trace
        self._start = record.stages[stage]
        self._path = f"{stage} {self._start.attempt}"
        self._ahead_s = self._start.started_at - time.time()
        """How far the broker's clock is ahead of this machine's."""
        self._free_at = self._start.started_at
        """Since when the trainer does nothing that has a span yet."""
        self._children = 0
        self._steps = self._saved = 0
        """Weight updates made, and those in the newest checkpoint."""
        self._chunk: _Chunk | None = None
        self._waited_s = waited_s(record, stage, self._start)
        if self._waited_s is not None:
            self.count(WAIT_SECONDS.observed(self._waited_s, queue))

    def count(self, counts: Counts) -> None:
        """Count something with whatever is told next."""
        self._outbox.count(counts)

    def hears(self, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """What a trainer's events are given to: what is only for those who watch ends here."""

        def take(event: Event) -> None:
            match event:
                case TrainerStarted():
                    self.count(TRAINER_STARTS.one(event.how))
                    self._close_chunk()
                    self._free_at = self._now()
                    if event.how == "restart":
                        self._steps = self._saved
                case TrainerPhase():
                    self._phase(event)
                case _:
                    if isinstance(event, Progress) and event.unit == "steps":
                        self._stepped(event.done, self._now())
                    elif isinstance(event, CheckpointSaved):
                        self._saved = event.step
                    on_event(event)

        return take

    def resumed_at(self, step: int) -> None:
        """The trainer goes on from here."""
        self._steps = self._saved = step

    def end_counts(self, outcome: str) -> Counts:
        """What is counted where the start ends so."""
        return STAGE_ENDS.one(self._stage, outcome)

    def seconds_counts(self, seconds: float) -> Counts:
        """What is counted where the stage is done."""
        return STAGE_SECONDS.observed(seconds, self._stage, self._type, self._class)

    def ended(self, outcome: str, code: str | None = None, status: str | None = None) -> None:
        """Send the start's span, and the job's where that has ended with it.

        Args:
            outcome: As it is counted.
            code: The error's.
            status: The job's; None where it goes on.
        """
        if self._trace is None:
            return
        self._close_chunk()
        record, start, now = self._record, self._start, self._now()
        attributes: dict[str, str | int | float] = {
            "training.stage": self._stage,
            "training.type": self._type,
            "training.queue": self._queue,
            "training.class": self._class,
            "training.worker": start.worker,
            "training.attempt": start.attempt,
            "training.outcome": outcome,
        }
        spans = []
        if self._waited_s is not None:
            attributes["training.waited_seconds"] = round(self._waited_s, 3)
            began_at = start.started_at - self._waited_s
            path, queue = f"{self._path} wait", {"training.queue": self._queue}
            spans.append(
                Span(
                    record.id, f"{self._stage} waits", path, ROOT, began_at, start.started_at, queue
                )
            )
        spans.append(
            Span(record.id, self._stage, self._path, ROOT, start.started_at, now, attributes, code)
        )
        if status is not None:
            spans.append(job_span(record, status, now, code))
        self._trace(spans)

    def _phase(self, phase: TrainerPhase) -> None:
        began_at = phase.began_at + self._ahead_s
        if phase.step is not None:
            self._stepped(phase.step, began_at)
        self._close_chunk()
        attributes = {} if phase.step is None else {"training.step": phase.step}
        self._free_at = began_at + phase.seconds
        self._child(phase.name, began_at, self._free_at, attributes)

    def _stepped(self, done: int, at: float) -> None:
        """The trainer has made so many steps in all."""
        before, self._steps = self._steps, max(self._steps, done)
        if done <= before:
            return
        self.count(STEPS.one(self._type, self._class, by=done - before))
        if self._chunk is None:
            self._chunk = _Chunk(self._free_at, before + 1, done, at)
        self._chunk.done, self._chunk.ended_at = done, at
        if at - self._chunk.began_at > _LONGEST_CHUNK_S:
            self._close_chunk()

    def _close_chunk(self) -> None:
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            self._free_at = chunk.ended_at
            steps = {"training.first_step": chunk.first, "training.step": chunk.done}
            self._child("steps", chunk.began_at, chunk.ended_at, steps)

    def _child(
        self, name: str, began_at: float, ended_at: float, attributes: dict[str, int]
    ) -> None:
        if self._trace is None:
            return
        self._children += 1
        path = f"{self._path} {self._children}"
        self._trace([Span(self._record.id, name, path, self._path, began_at, ended_at, attributes)])

    def _now(self) -> float:
        return time.time() + self._ahead_s
