"""One start of one stage: fenced, reported, and every end returned as one value.

Knows nothing of Celery; ``tasks/stages/celery_tasks.py`` calls it and maps its outcome.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import redis

from routing.classes import MemoryClass
from routing.policy import TrainingType, required_class
from routing.queues import CPU_QUEUE, class_of, gpu_queue
from tasks.contract import STAGES
from tasks.errors import CancelledJobError, ErrorCode, JobError, SupersededError
from tasks.events import Note
from tasks.metrics import OOM_ESCALATIONS, STAGE_FAILURES
from tasks.stages.event_buffer import EventBuffer
from tasks.stages.outcomes import (
    Cancelled,
    DeferredToNewerWorker,
    Discarded,
    Done,
    Failed,
    Paused,
    Requeued,
    Rerouted,
    RetriedAfterDelay,
    StageOutcome,
    described,
)
from tasks.stages.stage_context import StageBody, StageContext, StageResult, until_connected
from tasks.stages.telemetry import Telemetry
from tasks.stages.worker_context import GpuUnhealthy, TrainerInterrupted, WorkerContext
from tasks.state.artifacts import JobArtifacts
from tasks.state.audit import Action
from tasks.state.job_store import StartOutcome
from tasks.state.record import VERSION, JobStatus, queue_of
from tasks.state.stage_message import StageMessage, stage_message, task_label
from tasks.tracing.spans import record_job

logger = logging.getLogger(__name__)

_MAX_RETRIES = {
    # A trainer that crashed was restarted on this machine already; one retry, which another machine
    # may get, distinguishes a bad machine from a bad job.
    ErrorCode.TRAINER_FAILED: 1,
    # Two failures quarantine a GPU, so that the second retry is on another one.
    ErrorCode.GPU_FAILED: 2,
}


@dataclass(frozen=True)
class Delivery:
    """How the message that starts a stage arrived.

    Attributes:
        queue: The queue it came from.
        tag: Its delivery tag, under which the broker knows that this worker holds it.
        version: The version of its job, as the sender knew it.
    """

    queue: str
    tag: str
    version: int = 1


def run_stage(
    stage: str,
    body: StageBody,
    job_id: str,
    delivery: Delivery,
    worker: WorkerContext,
    draining: Callable[[], bool],
) -> StageOutcome:
    """Start a stage, run its body and record how it ended."""
    started_s, extra = time.monotonic(), {"job": job_id, "stage": stage}
    try:
        outcome = _begin_and_run(stage, body, job_id, delivery, worker, draining, extra)
    except SupersededError as error:
        outcome = Discarded(str(error))
    except redis.RedisError as error:
        # Nothing can be recorded: the next start resumes from the last checkpoint.
        outcome = Requeued(f"the broker is unavailable: {error}")
    except JobError as error:
        outcome = _ended_with(error)
    # A deferred message returns until a newer worker is live: only its first time is logged.
    if not isinstance(outcome, DeferredToNewerWorker):
        level = logging.WARNING if isinstance(outcome, Failed | RetriedAfterDelay) else logging.INFO
        seconds, text = time.monotonic() - started_s, described(outcome)
        logger.log(level, "%s ended after %.1f s: %s", stage, seconds, text, extra=extra)
    return outcome


def _begin_and_run(
    stage: str,
    body: StageBody,
    job_id: str,
    delivery: Delivery,
    worker: WorkerContext,
    draining: Callable[[], bool],
    extra: dict[str, str],
) -> StageOutcome:
    start = _begin(stage, job_id, delivery, worker, draining, extra)
    if not isinstance(start, StageContext):
        return start
    try:
        return _run(start, body)
    finally:
        shutil.rmtree(start.scratch_dir, ignore_errors=True)


def _begin(
    stage: str,
    job_id: str,
    delivery: Delivery,
    worker: WorkerContext,
    draining: Callable[[], bool],
    extra: dict[str, str],
) -> StageContext | StageOutcome:
    """Ask the job's record for a start of the stage; name the job's tenant in the log's facts.

    Raises:
        UnknownJobError: There is no such job.
        UnreadableJobError: This version cannot read the job, which has failed now.
    """
    state = worker.state
    begin = partial(
        state.begin,
        job_id,
        stage,
        worker=worker.name,
        queue=delivery.queue,
        tag=delivery.tag,
        version=delivery.version,
        retry_in_s=worker.backoff.delay_s(0),
        change_id=uuid4().hex,
    )
    answer, token, record, candidates = until_connected(begin, draining)
    worker.services.dispatch_waiting(candidates)  # The queue has capacity for one more message.
    if record is not None:
        extra["tenant"] = record.tenant
        logger.info("%s begins", stage, extra=extra)
        events = EventBuffer(state, job_id, token)
        telemetry = Telemetry(
            record, stage, delivery.queue, worker.memory_class, events, worker.tracing.tracer
        )
        return StageContext(
            stage=stage,
            token=token,
            record=record,
            worker=worker,
            queue=delivery.queue,
            started_s=time.monotonic(),
            draining=draining,
            events=events,
            telemetry=telemetry,
        )
    summary = state.summary(job_id)
    if answer == StartOutcome.DONE:
        # An older worker may have ended before it sent the next stage.
        is_sent = summary.pending_queue is not None and not summary.in_tenant_queue
        if is_sent:
            state.send(summary)
        return Done({"job_id": job_id, "stage": stage}, summary.pending_queue if is_sent else None)
    if answer in (StartOutcome.NEWER, StartOutcome.STILL_NEWER):
        reason = f"{stage} waits for a worker of a newer version than {VERSION}"
        if answer == StartOutcome.NEWER:
            logger.warning("%s", reason, extra=extra)
        return DeferredToNewerWorker(reason)
    if answer == StartOutcome.EXHAUSTED:
        ended_at = summary.updated_at.timestamp()
        record_job(worker.tracing.tracer, summary, summary.status, ended_at, summary.error_code)
    # The message's sender waits for its result, and gets the job's error.
    failure = summary.failure()
    return _ended_with(failure) if failure else Discarded(f"{stage} of job {job_id} is {answer}")


def _run(context: StageContext, body: StageBody) -> StageOutcome:
    """Run the body and record how it ended."""
    worker, record = context.worker, context.record
    moved = _move_misplaced(context)
    if moved is not None:
        return moved
    try:
        if context.queue != CPU_QUEUE:
            worker.services.check_gpu(record.estimate.needed_gib)
        result = body(context)
    except TrainerInterrupted:
        return _requeue(context, Note(level="info", message=_why_interrupted(context)))
    except GpuUnhealthy as unhealthy:
        reason = f"{context.stage} waits for another GPU than that of {worker.name}: {unhealthy}"
        return _requeue(context, Note(level="warning", message=reason))
    except (redis.RedisError, SupersededError):
        raise  # Nothing can be written, and the job did not fail.
    except JobError as error:
        error.stage = context.stage
        return _retry_or_fail(context, error)
    except Exception as error:
        logger.exception("%s failed", context.stage, extra=_extra(context))
        message = f"{type(error).__name__}: {error}"
        return _retry_or_fail(context, JobError(message, ErrorCode.INTERNAL, context.stage))
    if isinstance(result, Rerouted):
        fields = JobArtifacts(cache_queue=result.queue).hash_fields()
        return _reroute(context, result.queue, result.reason, fields)
    return _finish(context, result)


def _move_misplaced(context: StageContext) -> StageOutcome | None:
    """Move a stage that this worker must not run, however its message came here."""
    worker, record, training = context.worker, context.record, context.record.job.training
    own_queue = queue_of(context.stage, record.gpu_queue, record.cache_queue)
    if context.queue != own_queue:
        # A stale or forged message: write access to one queue must not choose the GPU.
        return _reroute(context, own_queue, f"its message came from {context.queue}", {})
    routed = class_of(own_queue)
    if routed is None:
        return None
    needed = max(routed, required_class(TrainingType(training.type), record.estimate.needed_gib))
    if worker.services.has_class(needed):
        return None
    queue = gpu_queue(needed, record.job.engine)
    fields = {"gpu_queue": queue} | JobArtifacts(cache_queue=queue).hash_fields()
    reason = f"{worker.name} has no GPU of class {needed}, which the job needs"
    return _reroute(context, queue, reason, fields if queue != own_queue else {})


def _finish(context: StageContext, result: StageResult) -> Done:
    """Record that the stage is done."""
    state, record = context.worker.state, context.record
    seconds = time.monotonic() - context.started_s
    # As ``begin`` wrote it: no other start writes it while this one is the newest.
    stage = record.stages[context.stage].model_copy(
        update={"seconds": round(seconds, 3), "summary": result.summary}
    )
    is_last = result.result is not None
    cancelled = is_last and context.until_connected(lambda: _is_saved_on_cancel(context))
    following = None if is_last else _following(context, result)
    context.until_connected(context.events.flush)
    counts = {
        **context.events.take_counts(),
        **context.telemetry.end_counts("done"),
        **context.telemetry.seconds_counts(seconds),
    }
    finish = partial(
        state.finish_stage,
        context.job_id,
        context.token,
        context.stage,
        stage,
        result.artifacts,
        result.result,
        following=following,
        # A job that comes from the CPU queue has not been dispatched to a GPU yet.
        is_shared=following is not None and context.queue == CPU_QUEUE != following.queue,
        cancelled=cancelled,
        is_gpu_used=context.is_gpu_used,
        counts=counts,
        change_id=uuid4().hex,
    )
    is_sent = context.until_connected(finish)
    status = JobStatus.CANCELLED if cancelled else JobStatus.SUCCEEDED
    context.telemetry.record_end("done", status=status if is_last else None)
    context.worker.services.record_run(record, context.stage, stage, result.work)
    answer = {"job_id": context.job_id, "stage": context.stage, **(result.result or {})}
    return Done(answer, following.queue if following and is_sent else None)


def _requeue(context: StageContext, note: Note) -> StageOutcome:
    """Give the stage to another worker, since this one cannot continue."""
    logger.info("%s", note.message, extra=_extra(context))
    return _release(context, Requeued(note.message), "released", note)


def _why_interrupted(context: StageContext) -> str:
    if context.draining():
        return f"{context.worker.name} stops; {context.stage} waits for another worker"
    return f"{context.stage} stops as requested"


def _reroute(
    context: StageContext, queue: str, reason: str, fields: dict[str, str]
) -> StageOutcome:
    """Send the stage to another queue, and record fields of the job with it."""
    note = Note(level="info", message=f"{context.stage} moves to {queue}: {reason}")
    return _release(context, Rerouted(queue, reason), "rerouted", note, fields)


def _retry_or_fail(context: StageContext, error: JobError) -> StageOutcome:
    """Retry a failed stage where that may help, or end the job."""
    if error.code == ErrorCode.CANCELLED:
        return _end(context, error)
    context.telemetry.count(STAGE_FAILURES.one(context.stage, error.code))
    if error.code == ErrorCode.OUT_OF_MEMORY and not context.record.oom_escalated:
        engine = context.record.job.engine
        services = context.worker.services
        larger = context.until_connected(lambda: services.next_larger_class(engine))
        if larger is not None:
            return _escalate(context, larger, error)
    max_retries = context.worker.backoff.max_retries
    max_retries = min(max_retries, _MAX_RETRIES.get(error.code, max_retries))
    if error.retryable and context.record.retries < max_retries:
        return _retry(context, error, max_retries)
    return _end(context, error)


def _escalate(context: StageContext, larger: MemoryClass, error: JobError) -> StageOutcome:
    """Send a stage that ran out of GPU memory to the next larger class, once."""
    job = context.record.job
    queue = gpu_queue(larger, job.engine)
    context.telemetry.count(OOM_ESCALATIONS.one(queue))
    fields = {"gpu_queue": queue, "reason": error.message, "oom_escalated": "1"}
    fields |= context.worker.state.fields_after_oom(job, larger)
    artifacts = JobArtifacts(cache_queue=queue)
    return _reroute(context, queue, error.message, fields | artifacts.hash_fields())


def _retry(context: StageContext, error: JobError, max_retries: int) -> StageOutcome:
    """Retry a stage that hit a transient error, after a delay."""
    backoff, retries = context.worker.backoff, context.record.retries
    delay_s = backoff.delay_s(retries)
    count = f"retry {retries + 1} of {max_retries} in {delay_s:.0f} s"
    reason = f"{error.message}; {count}"
    note = Note(level="warning", message=f"{context.stage}: {reason}")
    fields = {"retries": str(retries + 1)}
    return _release(context, RetriedAfterDelay(reason), "retried", note, fields, delay_s)


def _release(
    context: StageContext,
    outcome: StageOutcome,
    label: str,
    note: Note,
    fields: dict[str, str] | None = None,
    delay_s: float | None = None,
) -> StageOutcome:
    """Let another start have the stage, unless its job was paused or cancelled meanwhile.

    Args:
        context: The start that gives the stage up.
        outcome: What to return if the job goes to another start.
        label: The name of the outcome in metrics and traces.
        note: Why, for the job's readers.
        fields: Fields of the job's record to change.
        delay_s: Seconds until the stage is sent again; None leaves that to the caller.
    """
    state, job_id, token = context.worker.state, context.job_id, context.token
    context.until_connected(context.events.flush)
    counts = context.events.take_counts()
    all_counts = {**counts, **context.telemetry.end_counts(label)}
    release = partial(
        state.release,
        job_id,
        token,
        note,
        fields,
        delay_s=delay_s,
        is_gpu_used=context.is_gpu_used,
        counts=all_counts,
        change_id=uuid4().hex,
    )
    status = context.until_connected(release)
    if status == JobStatus.CANCELLING:
        context.telemetry.count(counts)
        return _cancel(context)
    context.telemetry.record_end(label)
    if status == JobStatus.PAUSED:
        return Paused(context.worker.services.actor_of(Action.JOB_PAUSE, job_id))
    return outcome


def _cancel(context: StageContext) -> StageOutcome:
    """End a cancelled job, or let it publish its last checkpoint if the user asked for that."""
    record = context.until_connected(lambda: context.worker.state.get(context.job_id))
    if record.save_on_cancel and context.stage == "train" and record.artifacts.checkpoints:
        return _finish(context, StageResult("cancelled; its last checkpoint is published"))
    return _end(context, CancelledJobError(context.job_id, context.stage))


def _end(context: StageContext, error: JobError) -> Failed | Cancelled:
    """End the job with an error."""
    cancelled = error.code == ErrorCode.CANCELLED
    status = JobStatus.CANCELLED if cancelled else JobStatus.FAILED
    context.until_connected(context.events.flush)
    counts = {**context.events.take_counts(), **context.telemetry.end_counts(status)}
    fail = partial(context.worker.state.fail, context.job_id, context.token, error, counts)
    fail = partial(fail, change_id=uuid4().hex, is_gpu_used=context.is_gpu_used)
    context.until_connected(fail)
    context.telemetry.record_end(status, error.code, status)
    if cancelled:
        services = context.worker.services
        return Cancelled(error, services.actor_of(Action.JOB_CANCEL, context.job_id))
    return Failed(error)


def _ended_with(error: JobError) -> Failed | Cancelled:
    return Cancelled(error) if error.code == ErrorCode.CANCELLED else Failed(error)


def _is_saved_on_cancel(context: StageContext) -> bool:
    """Whether the job is cancelled, and its last checkpoint is to be published."""
    state, job_id = context.worker.state, context.job_id
    is_cancelled = state.requested_state(job_id, context.token) == JobStatus.CANCELLING
    return is_cancelled and state.get(job_id).save_on_cancel


def _following(context: StageContext, result: StageResult) -> StageMessage:
    """Return the message of the next stage."""
    record = context.record
    following = STAGES[STAGES.index(context.stage) + 1]
    queue = queue_of(following, record.gpu_queue, result.artifacts.cache_queue)
    label = task_label(record.id, record.name, record.tenant)
    return stage_message(
        record.id, record.result_id, following, record.gpu_queue, label=label, queue=queue
    )


def _extra(context: StageContext) -> dict[str, str]:
    record = context.record
    return {"tenant": record.tenant, "job": context.job_id, "stage": context.stage}
