"""One start of one stage: fenced, reported, and every failure told in one form.

Knows nothing of Celery; ``tasks/app.py`` calls it and turns its outcome into Celery's.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import redis

from routing.engines import DIFFUSERS
from routing.queues import CPU_QUEUE, gpu_queue
from tasks.contract import STAGES
from tasks.errors import CancelledJobError, ErrorCode, JobError, SupersededError
from tasks.eta.history import WorkDone
from tasks.events import CacheDone, Event, Note, TrainDone
from tasks.metrics import OOM_ESCALATIONS, STAGE_FAILURES
from tasks.stages.event_buffer import EventBuffer
from tasks.stages.telemetry import Telemetry
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import GpuUnhealthy, TrainerInterrupted, WorkerContext
from tasks.state.job_store import StartOutcome
from tasks.state.record import NEXT_QUEUE, VERSION, JobRecord, JobStatus, queue_of
from tasks.tracing.spans import record_job

T = TypeVar("T")
logger = logging.getLogger(__name__)

_WISHES_TO_STOP = (JobStatus.CANCELLING, JobStatus.PAUSING)
_ASK_AGAIN_S = 1.0
# A trainer that crashed has been started again on this machine already; one more try, which
# another machine may get, tells a bad machine from a bad job.
_TRIES_AFTER_CRASHES = 1


@dataclass(frozen=True)
class Delivery:
    """How the message that starts a stage came."""

    queue: str
    tag: str
    """Its delivery tag: the name under which the broker knows that this worker holds it."""
    version: int = 1
    """The version of its job, as its sender knew it."""


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind.

    Attributes:
        summary: What it did, in a few words for people.
        refs: Store keys for later stages.
        result: The job's result; the last stage's only.
        made: What later jobs' times are learned from.
    """

    summary: str
    refs: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    made: WorkDone = field(default_factory=WorkDone)


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended well.

    Attributes:
        answer: What Celery keeps as the task's result: references only.
        next_queue: Where the next stage's message goes; None where that is not now.
    """

    answer: dict[str, Any]
    next_queue: str | None


@dataclass(frozen=True)
class StageContext:
    """What a stage's body works with."""

    stage: str
    attempt: int
    record: JobRecord
    runtime: WorkerContext
    draining: Callable[[], bool]
    queue: str
    outbox: EventBuffer
    telemetry: Telemetry

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.record.id

    def emit(
        self,
        event: Event,
        refs: dict[str, str] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Tell the job's readers something, now or when the broker is back; see ``EventBuffer.put``.

        Raises:
            SupersededError: Another start of this stage has taken over.
        """
        self.outbox.put(event, refs, then)

    def run_trainer(
        self,
        request: TrainerRequest,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request to its end; see ``tasks.stages.worker_context.Trainer``."""
        observed = self.telemetry.observing(on_event)
        return self.runtime.trainer.run(request, on_event=observed, stop_requested=stop_requested)

    def stop_requested(self) -> bool:
        """Whether the stage should stop: for the job, or because the worker is going away.

        A broker that is away is no reason.

        Raises:
            SupersededError: Another start of this stage has taken over.
        """
        return self.draining() or self.outbox.ask() in _WISHES_TO_STOP

    def check_wanted(self) -> None:
        """Go on only where this start is the newest and nobody has cancelled the job.

        Raises:
            SupersededError: Another start of this stage has taken over.
            CancelledJobError: Somebody cancelled the job, and wants nothing of it.
        """
        self.outbox.flush()
        if self.runtime.state.requested_state(self.job_id, self.attempt) != JobStatus.CANCELLING:
            return
        if not self.runtime.state.get(self.job_id).save_on_cancel:
            raise CancelledJobError(self.job_id, self.stage)

    @property
    def scratch_dir(self) -> Path:
        """A folder of this start's own, removed at its end."""
        return self.runtime.scratch_dir / f"{self.job_id}-{self.attempt}"

    def trainer_request(self, *, stage: Literal["cache", "train"], **fields: Any) -> TrainerRequest:
        """A request to the trainer on behalf of this start."""
        job = self.record.job
        return TrainerRequest(
            stage=stage,
            # Encoder outputs are the same for all: one engine makes them.
            engine=job.engine if stage == "train" else DIFFUSERS,
            job_id=self.job_id,
            attempt=self.attempt,
            name=job.name,
            training=job.training,
            dataset_key=self.record.refs["dataset"],
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


class Requeued(Exception):  # noqa: N818 - an outcome, not an error
    """The worker is going away: the message goes back, and another start goes on from here."""


class Rerouted(Exception):  # noqa: N818 - an outcome, not an error
    """The stage must be done elsewhere: its message goes to another queue."""

    def __init__(self, queue: str, reason: str) -> None:
        super().__init__(queue, reason)
        self.queue, self.reason = queue, reason


class Discarded(Exception):  # noqa: N818 - an outcome, not an error
    """The message is not to be worked on: a duplicate, or one of a job that is over."""


class DeferredToNewerWorker(Discarded):
    """The same, since the job is for workers of a newer version."""


def run_stage(
    stage: str,
    body: StageBody,
    job_id: str,
    delivery: Delivery,
    runtime: WorkerContext,
    draining: Callable[[], bool],
) -> StageEnd:
    """Start a stage and see it to an end.

    Raises:
        Discarded: There is nothing to do for this message.
        Requeued: The worker is going away; hand the message back.
        Rerouted: Send the message to another queue.
        redis.RedisError: The broker is away; hand the message back, and whoever gets it next goes
            on from the last checkpoint.
        JobError: The stage failed, and the job with it.
    """
    state = runtime.state
    outcome, attempt, begun = state.begin(
        job_id,
        stage,
        worker=runtime.worker,
        queue=delivery.queue,
        tag=delivery.tag,
        version=delivery.version,
        retry_in_s=runtime.backoff.delay_s(0),
    )
    runtime.dispatch()  # the queue has room for another one
    if outcome == StartOutcome.DONE:
        return StageEnd({"job_id": job_id, "stage": stage}, state.next_queue(job_id))
    if outcome in (StartOutcome.NEWER, StartOutcome.STILL_NEWER):
        told = f"{stage} waits for a worker of a newer version than {VERSION}"
        if outcome == StartOutcome.NEWER:
            logger.warning("%s", told, extra={"job": job_id, "stage": stage})
        raise DeferredToNewerWorker(told)
    if begun is None:
        head = state.summary(job_id)
        if outcome == StartOutcome.EXHAUSTED:
            ended_at = head.updated_at.timestamp()
            record_job(runtime.tracing.tracer, head, head.status, ended_at, head.error_code)
        failure = head.failure()
        if failure is not None:
            raise failure  # whoever waits for the result of this very message hears of it, too
        raise Discarded(f"{stage} of job {job_id} is {outcome}")
    outbox = EventBuffer(state, job_id, attempt)
    telemetry = Telemetry(
        begun, stage, delivery.queue, runtime.memory_class, outbox, runtime.tracing.tracer
    )
    context = StageContext(
        stage, attempt, begun, runtime, draining, delivery.queue, outbox, telemetry
    )
    logger.info("%s begins", stage, extra={"job": job_id, "stage": stage})
    try:
        return _ended(context, body, time.monotonic())
    except SupersededError as error:
        raise Discarded(str(error)) from error
    finally:
        shutil.rmtree(context.scratch_dir, ignore_errors=True)


def _ended(context: StageContext, body: StageBody, started: float) -> StageEnd:
    """Do the work and record what came of it."""
    extra = {"job": context.job_id, "stage": context.stage}
    worker = context.runtime.worker
    own = queue_of(context.stage, context.record.gpu_queue, context.record.refs.get(NEXT_QUEUE))
    if context.queue != own:
        # Made up, or left from before: whoever may write to one queue does not choose the GPU.
        raise _move(context, Rerouted(own, f"its message came by {context.queue}"), {})
    try:
        if context.queue != CPU_QUEUE:
            context.runtime.check_gpu(context.record.estimate.needed_gib)
        result = body(context)
    except TrainerInterrupted:
        note = Note(level="info", message=f"{worker} stops; {context.stage} waits")
        result = _interrupted(context, note)
    except GpuUnhealthy as unfit:
        message = f"{context.stage} waits for another GPU than that of {worker}: {unfit}"
        result = _interrupted(context, Note(level="warning", message=message))
    except Rerouted as moved:
        raise _move(context, moved, {f"ref:{NEXT_QUEUE}": moved.queue}) from None
    except (redis.RedisError, SupersededError):
        raise  # nothing can be written, and the job is not to blame
    except JobError as error:
        error.stage = context.stage
        raise _failed(context, error) from error
    except Exception as error:
        logger.exception("%s failed", context.stage, extra=extra)
        message = f"{type(error).__name__}: {error}"
        raise _failed(context, JobError(message, ErrorCode.INTERNAL, context.stage)) from error
    next_queue = _finish(context, result, time.monotonic() - started)
    answer = {"job_id": context.job_id, "stage": context.stage, **(result.result or {})}
    return StageEnd(answer, next_queue)


def _finish(context: StageContext, result: StageResult, seconds: float) -> str | None:
    """Record that the stage is done.

    Returns:
        Where the next one's message goes; None where that is not now.
    """
    state, record = context.runtime.state, context.record
    # As ``begin`` wrote it: nobody else does while this start is the newest.
    stage = record.stages[context.stage].model_copy(
        update={"seconds": round(seconds, 3), "summary": result.summary}
    )
    ends = result.result is not None
    cancelled = ends and _patiently(context, lambda: _is_saved(context))
    following = None if ends else _following_queue(context, result)
    # A job that comes from the CPU queue has had no turn on a GPU yet.
    fair_share_queue = following if context.queue == CPU_QUEUE != following else None
    goes = False
    _patiently(context, context.outbox.flush)
    counts = {
        **context.outbox.take_counts(),
        **context.telemetry.end_counts("done"),
        **context.telemetry.seconds_counts(seconds),
    }
    try:
        goes = _patiently(
            context,
            lambda: state.finish_stage(
                context.job_id,
                context.attempt,
                context.stage,
                stage,
                result.refs,
                result.result,
                fair_share_queue=fair_share_queue,
                cancelled=cancelled,
                counts=counts,
            ),
        )
    except SupersededError:
        # Where the connection broke between the write and its answer, the job has ended just so.
        ended = state.get(context.job_id)
        if result.result is None or ended.result != result.result:
            raise
    context.telemetry.record_end("done", status=_status(cancelled) if ends else None)
    context.runtime.learn(record, context.stage, stage, result.made)
    return following if goes else None


def _status(cancelled: bool) -> JobStatus:
    return JobStatus.CANCELLED if cancelled else JobStatus.SUCCEEDED


def _is_saved(context: StageContext) -> bool:
    """Whether somebody cancelled the job, and wants what there is of it."""
    state, job_id = context.runtime.state, context.job_id
    is_cancelled = state.requested_state(job_id, context.attempt) == JobStatus.CANCELLING
    return is_cancelled and state.get(job_id).save_on_cancel


def _following_queue(context: StageContext, result: StageResult) -> str:
    following = STAGES[STAGES.index(context.stage) + 1]
    return queue_of(following, context.record.gpu_queue, result.refs.get(NEXT_QUEUE))


def _failed(context: StageContext, error: JobError) -> Exception:
    """What a failure means: another try where that may help, or else the job's end."""
    extra = {"job": context.job_id, "stage": context.stage}
    if error.code == ErrorCode.CANCELLED:
        return _end(context, error)
    context.telemetry.count(STAGE_FAILURES.one(context.stage, error.code))
    if error.code == ErrorCode.OUT_OF_MEMORY and not context.record.oom_escalated:
        larger = context.runtime.next_larger_class(context.record.job.engine)
        if larger is not None:
            moved = Rerouted(gpu_queue(larger, context.record.job.engine), error.message)
            context.telemetry.count(OOM_ESCALATIONS.one(moved.queue))
            fields = {"gpu_queue": moved.queue, "reason": error.message, "oom_escalated": "1"}
            return _move(context, moved, {**fields, f"ref:{NEXT_QUEUE}": moved.queue})
    backoff, tries = context.runtime.backoff, context.record.retries
    most = _TRIES_AFTER_CRASHES if error.code == ErrorCode.TRAINER_FAILED else backoff.tries
    if error.retryable and tries < min(most, backoff.tries):
        delay_s = backoff.delay_s(tries)
        told = f"{error.message}; try {tries + 1} of {backoff.tries} in {delay_s:.0f} s"
        note = Note(level="warning", message=f"{context.stage}: {told}")
        if _release(context, "retried", note, {"retries": str(tries + 1)}, delay_s):
            return Discarded(told)
        return _cancelled(context)
    logger.warning("%s ends the job: %s", context.stage, error, extra=extra)
    return _end(context, error)


def _move(context: StageContext, moved: Rerouted, fields: dict[str, str]) -> Exception:
    note = Note(level="info", message=f"{context.stage} moves to {moved.queue}: {moved.reason}")
    return moved if _release(context, "rerouted", note, fields) else _cancelled(context)


def _interrupted(context: StageContext, note: Note) -> StageResult:
    """What it means for the stage that this worker cannot go on with it.

    Returns:
        Where somebody wants what there is of a cancelled job: that, as the stage's result.
    """
    if _release(context, "released", note):
        extra = {"job": context.job_id, "stage": context.stage}
        logger.info("%s goes back to its queue", context.stage, extra=extra)
        raise Requeued(f"{context.stage} of job {context.job_id}")
    record = context.runtime.state.get(context.job_id)
    if record.save_on_cancel and context.stage == "train" and "checkpoints" in record.refs:
        return StageResult("cancelled; what there is is published")
    raise _cancelled(context)


def _cancelled(context: StageContext) -> JobError:
    return _end(context, CancelledJobError(context.job_id, context.stage))


def _end(context: StageContext, error: JobError) -> JobError:
    """End the job with an error."""
    cancelled = error.code == ErrorCode.CANCELLED
    outcome = status = JobStatus.CANCELLED if cancelled else JobStatus.FAILED
    state = context.runtime.state
    counts = {**context.outbox.take_counts(), **context.telemetry.end_counts(outcome)}
    _patiently(context, lambda: state.fail(context.job_id, context.attempt, error, counts))
    context.telemetry.record_end(outcome, error.code, status)
    return error


def _release(
    context: StageContext,
    outcome: str,
    note: Note,
    fields: dict[str, str] | None = None,
    delay_s: float | None = None,
) -> bool:
    """Give the stage back; False where the job is to be cancelled instead."""
    state, job_id, attempt = context.runtime.state, context.job_id, context.attempt
    _patiently(context, context.outbox.flush)
    counts = context.outbox.take_counts()
    told = {**counts, **context.telemetry.end_counts(outcome)}
    status = _patiently(
        context,
        lambda: state.release(job_id, attempt, note, fields, delay_s=delay_s, counts=told),
    )
    if status == JobStatus.CANCELLING:
        context.telemetry.count(counts)
        return False
    context.telemetry.record_end(outcome)
    if status == JobStatus.PAUSED:
        raise Discarded(f"job {job_id} is paused")
    return True


def _patiently(context: StageContext, write: Callable[[], T]) -> T:
    """Do it as soon as the broker is there: work that is done is not to be lost."""
    while True:
        try:
            return write()
        except (redis.ConnectionError, redis.TimeoutError):
            if context.draining():
                raise
            time.sleep(_ASK_AGAIN_S)
