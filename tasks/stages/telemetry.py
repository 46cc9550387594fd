"""Telemetry of one start of a stage: its counts, and the spans of its trace.

Counts travel with what the start writes (``tasks/stages/event_buffer.py``), spans by themselves.
Neither delays the stage.
"""

import time
from dataclasses import dataclass

from opentelemetry.trace import Tracer

from routing.classes import MemoryClass
from tasks.eta.history import queue_wait_s
from tasks.events import CheckpointSaved, EventRouter, Progress, TrainerPhase, TrainerStarted
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
from tasks.tracing.spans import JobTrace, record_job

# A span is sent when it is over: a viewer sees the progress of a run of hours.
_MAX_STEPS_SPAN_S = 300.0


@dataclass
class _Steps:
    """Consecutive training steps, recorded as one span."""

    started_at: float
    first: int
    done: int
    ended_at: float


class Telemetry:
    """Counts and spans of one start.

    Args:
        record: The job when the start began.
        stage: The stage.
        queue: The queue that its message came from.
        memory_class: The memory class of the worker's GPU.
        events: Takes the counts.
        tracer: Makes the spans.
    """

    def __init__(
        self,
        record: JobRecord,
        stage: str,
        queue: str,
        memory_class: MemoryClass | None,
        events: EventBuffer,
        tracer: Tracer,
    ) -> None:
        self._record, self._stage, self._queue = record, stage, queue
        self._class, self._type = class_label(memory_class), record.job.training.type
        self._events, self._tracer = events, tracer
        self._trace = JobTrace(tracer, record.id)
        self._start = record.stages[stage]
        self._path = f"{stage} {self._start.attempt}"
        self._ahead_s = self._start.started_at - time.time()
        """How far the broker's clock is ahead of this machine's."""
        self._idle_since = self._start.started_at
        """The end of the trainer's last span."""
        self._children = 0
        self.is_gpu_used = False
        """Whether the trainer was asked for anything."""
        self._done = self._saved = 0
        """Steps done, and those in the newest checkpoint."""
        self._steps: _Steps | None = None
        self._waited_s = queue_wait_s(record, stage, self._start)
        if self._waited_s is not None:
            self.count(WAIT_SECONDS.observed(self._waited_s, queue))

    def count(self, counts: Counts) -> None:
        """Count something with the next event."""
        self._events.count(counts)

    def register(self, router: EventRouter) -> None:
        """Count and trace a trainer's events; its starts and phases are telemetry only."""
        router.handle(TrainerStarted, self._record_trainer_start)
        router.handle(TrainerPhase, self._record_phase)
        router.observe(Progress, self._observe_progress)
        router.observe(CheckpointSaved, self._observe_checkpoint)

    def resume_from(self, step: int) -> None:
        """Count the steps of a trainer that resumes from a checkpoint of this step."""
        self._done = self._saved = step

    def end_counts(self, outcome: str) -> Counts:
        """Counts of a start that ends with this outcome."""
        return STAGE_ENDS.one(self._stage, outcome)

    def seconds_counts(self, seconds: float) -> Counts:
        """Counts of a stage that took these seconds."""
        return STAGE_SECONDS.observed(seconds, self._stage, self._type, self._class)

    def record_end(self, outcome: str, code: str | None = None, status: str | None = None) -> None:
        """Record the start's span, and the job's if it ends, too.

        Args:
            outcome: The outcome that is counted.
            code: The error's.
            status: The status of the job that ended; None for one that continues.
        """
        self._close_steps()
        start, now = self._start, self._now()
        attributes: dict[str, str | int | float] = {
            "training.stage": self._stage,
            "training.type": self._type,
            "training.queue": self._queue,
            "training.class": self._class,
            "training.worker": start.worker,
            "training.attempt": start.attempt,
            "training.outcome": outcome,
        }
        if self._waited_s is not None:
            attributes["training.waited_seconds"] = round(self._waited_s, 3)
            self._trace.record(
                f"{self._stage} waits",
                f"{self._path} wait",
                start.started_at - self._waited_s,
                start.started_at,
                {"training.queue": self._queue},
            )
        self._trace.record(
            self._stage, self._path, start.started_at, now, attributes, error_code=code
        )
        if status is not None:
            record_job(self._tracer, self._record, status, now, code)

    def _record_trainer_start(self, event: TrainerStarted) -> None:
        self.count(TRAINER_STARTS.one(event.how))
        self._close_steps()
        self._idle_since = self._now()
        if event.how == "restart":
            self._done = self._saved

    def _observe_progress(self, event: Progress) -> None:
        if event.unit == "steps":
            self._count_steps(event.done, self._now())

    def _observe_checkpoint(self, event: CheckpointSaved) -> None:
        self._saved = event.step

    def _record_phase(self, phase: TrainerPhase) -> None:
        started_at = phase.began_at + self._ahead_s
        if phase.step is not None:
            self._count_steps(phase.step, started_at)
        self._close_steps()
        attributes = {} if phase.step is None else {"training.step": phase.step}
        self._idle_since = started_at + phase.seconds
        self._record_child(phase.name, started_at, self._idle_since, attributes)

    def _count_steps(self, done: int, at: float) -> None:
        """Count the steps up to ``done``, the number of all that the trainer has made."""
        before, self._done = self._done, max(self._done, done)
        if done <= before:
            return
        self.count(STEPS.one(self._type, self._class, by=done - before))
        if self._steps is None:
            self._steps = _Steps(self._idle_since, before + 1, done, at)
        self._steps.done, self._steps.ended_at = done, at
        if at - self._steps.started_at > _MAX_STEPS_SPAN_S:
            self._close_steps()

    def _close_steps(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            self._idle_since = steps.ended_at
            attributes = {"training.first_step": steps.first, "training.step": steps.done}
            self._record_child("steps", steps.started_at, steps.ended_at, attributes)

    def _record_child(
        self, name: str, started_at: float, ended_at: float, attributes: dict[str, int]
    ) -> None:
        self._children += 1
        path = f"{self._path} {self._children}"
        self._trace.record(name, path, started_at, ended_at, attributes, parent=self._path)

    def _now(self) -> float:
        return time.time() + self._ahead_s
