"""One start of one stage: fenced, reported, and every failure told in one form.

Knows nothing of Celery; ``tasks/app.py`` calls it and turns its outcome into Celery's.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import redis

from tasks.errors import CancelledJobError, ErrorCode, JobError
from tasks.events import Event, Note
from tasks.records import NEXT_QUEUE, JobRecord, StageRecord, SupersededError
from tasks.requests import TrainerRequest
from tasks.runtime import Runtime, TrainerInterrupted
from tasks.state import BeginOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """How the message that starts a stage came."""

    queue: str
    redelivered: bool


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind.

    Attributes:
        summary: What it did, in a few words for people.
        refs: Store keys for later stages.
        result: The job's result; the last stage's only.
    """

    summary: str
    refs: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class StageContext:
    """What a stage's body works with."""

    stage: str
    attempt: int
    record: JobRecord
    runtime: Runtime
    draining: Callable[[], bool]
    queue: str

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.record.id

    def emit(self, event: Event) -> None:
        """Tell the job's readers something.

        Raises:
            SupersededError: Another start of this stage has taken over.
        """
        self.runtime.state.emit(self.job_id, self.attempt, event)

    def stop_requested(self) -> bool:
        """Whether the stage should stop: the job is cancelled, or the worker is going away."""
        return self.draining() or self.runtime.state.cancel_requested(self.job_id)

    def check_cancelled(self) -> None:
        """Raise CancelledJobError where somebody wants the job to stop."""
        if self.runtime.state.cancel_requested(self.job_id):
            raise CancelledJobError(self.job_id, self.stage)

    @property
    def scratch_dir(self) -> Path:
        """A folder of this start's own, removed at its end."""
        return self.runtime.scratch_dir / f"{self.job_id}-{self.attempt}"

    def trainer_request(self, **fields: Any) -> TrainerRequest:
        """A request to the trainer on behalf of this start."""
        job = self.record.job
        return TrainerRequest(
            job_id=self.job_id,
            attempt=self.attempt,
            name=job.name,
            training=job.training,
            data_set_key=self.record.refs["data_set"],
            store_url=self.runtime.store.url,
            scratch_dir=str(self.scratch_dir),
            device=self.runtime.device,
            **fields,
        )


class StageBody(Protocol):
    """The work of one stage."""

    def __call__(self, context: StageContext) -> StageResult:
        """Do it.

        Raises:
            JobError: It failed.
            TrainerInterrupted: It stopped because it was asked to.
        """
        ...


class StageReleased(Exception):  # noqa: N818 - an outcome, not an error
    """The worker is going away: the message goes back, and another start goes on from here."""


class StageMoved(Exception):  # noqa: N818 - an outcome, not an error
    """The stage must be done elsewhere: its message goes to another queue."""

    def __init__(self, queue: str, reason: str) -> None:
        super().__init__(queue, reason)
        self.queue, self.reason = queue, reason


class StageDropped(Exception):  # noqa: N818 - an outcome, not an error
    """The message is not to be worked on: a duplicate, or one of a job that is over."""


def run_stage(
    stage: str,
    body: StageBody,
    job_id: str,
    delivery: Delivery,
    runtime: Runtime,
    draining: Callable[[], bool],
) -> dict[str, Any]:
    """Start a stage and see it to an end.

    Returns:
        What Celery keeps as the task's result: references only.

    Raises:
        StageDropped: There is nothing to do for this message.
        StageReleased: The worker is going away; hand the message back.
        StageMoved: Send the message to another queue.
        redis.RedisError: The broker is away; hand the message back, and whoever gets it next goes
            on from the last checkpoint.
        JobError: The stage failed, and the job with it.
    """
    outcome, attempt = runtime.state.begin(
        job_id, stage, worker=runtime.worker, queue=delivery.queue, redelivered=delivery.redelivered
    )
    if outcome == BeginOutcome.DONE:
        return {"job_id": job_id, "stage": stage}
    if outcome != BeginOutcome.BEGUN:
        raise StageDropped(f"{stage} of job {job_id} is {outcome}")
    record = runtime.state.get(job_id)
    context = StageContext(stage, attempt, record, runtime, draining, delivery.queue)
    logger.info("%s begins", stage, extra={"job": job_id, "stage": stage})
    started = time.monotonic()
    try:
        result = body(context)
    except SupersededError as error:
        raise StageDropped(str(error)) from error
    except TrainerInterrupted as error:
        raise _interrupted(context) from error
    except StageMoved as moved:
        _move(context, moved)
        raise
    except redis.RedisError:
        raise  # nothing can be written, and the job is not to blame
    except JobError as error:
        error.stage = stage
        _fail(context, error)
        raise
    except Exception as error:
        logger.exception("%s failed", stage, extra={"job": job_id, "stage": stage})
        foreseen = JobError(f"{type(error).__name__}: {error}", ErrorCode.INTERNAL, stage)
        _fail(context, foreseen)
        raise foreseen from error
    finally:
        shutil.rmtree(context.scratch_dir, ignore_errors=True)
    _finish(context, result, time.monotonic() - started)
    return {"job_id": job_id, "stage": stage, **(result.result or {})}


def _finish(context: StageContext, result: StageResult, seconds: float) -> None:
    begun = context.runtime.state.get(context.job_id).stages[context.stage]
    record = StageRecord(
        **begun.model_dump(exclude={"seconds", "summary"}),
        seconds=round(seconds, 3),
        summary=result.summary,
    )
    try:
        context.runtime.state.finish_stage(
            context.job_id, context.attempt, context.stage, record, result.refs, result.result
        )
    except SupersededError as error:
        raise StageDropped(str(error)) from error


def _fail(context: StageContext, error: JobError) -> None:
    extra = {"job": context.job_id, "stage": context.stage}
    logger.warning("%s ends the job: %s", context.stage, error, extra=extra)
    try:
        context.runtime.state.fail(context.job_id, context.attempt, error)
    except SupersededError as superseded:
        raise StageDropped(str(superseded)) from error


def _move(context: StageContext, moved: StageMoved) -> None:
    try:
        note = Note(level="info", message=f"{context.stage} moves to {moved.queue}: {moved.reason}")
        refs = {NEXT_QUEUE: moved.queue}
        context.runtime.state.release(context.job_id, context.attempt, note, refs)
    except SupersededError as error:
        raise StageDropped(str(error)) from error


def _interrupted(context: StageContext) -> Exception:
    """What an interrupted trainer means for the stage."""
    try:
        if context.runtime.state.cancel_requested(context.job_id):
            cancelled = CancelledJobError(context.job_id, context.stage)
            _fail(context, cancelled)
            return cancelled
        note = Note(level="info", message=f"{context.runtime.worker} stops; {context.stage} waits")
        context.runtime.state.release(context.job_id, context.attempt, note)
        extra = {"job": context.job_id, "stage": context.stage}
        logger.info("%s goes back to its queue", context.stage, extra=extra)
    except SupersededError as error:
        return StageDropped(str(error))
    return StageReleased(f"{context.stage} of job {context.job_id}")
