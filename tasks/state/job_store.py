"""Records jobs and what their stages do: one hash and one stream of events for each job.

Every change is one script of ``tasks/state/scripts.py``. A change made for a stage is fenced by the
token that its start was given: only the newest start may write. What operators and the
maintenance do to jobs is in ``tasks/state/control.py``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from redis import Redis

from routing.classes import NO_PRICES, GpuPrices, MemoryClass
from routing.estimate import PUBLISHED, MemoryModel
from routing.policy import AUTO_SHARE
from routing.queues import class_of
from tasks.contract import STAGES, events_key, record_key
from tasks.errors import (
    DEAD_LETTER_CODES,
    ErrorCode,
    InvalidJobError,
    JobError,
    Problem,
    SupersededError,
    UnknownJobError,
    UnreadableJobError,
)
from tasks.events import Event, JobAccepted, JobEnded, StageFinished
from tasks.jobs.job import TrainingJob
from tasks.metrics import Counts
from tasks.state import keys, scripts
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.fencing_token import NO_TOKEN, FencingToken
from tasks.state.job_reader import JobReader
from tasks.state.record import (
    DELETED,
    VERSION,
    JobRecord,
    JobStatus,
    JobSummary,
    StageRecord,
    hash_of,
    parse_record,
)
from tasks.state.scripts import Candidates
from tasks.state.stage_message import StageMessage, send_waiting, stage_message, task_label
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.webhook_secrets import WebhookSecrets

# Stops a stage that takes its worker down each time, for example because the host runs out of
# memory; five leaves room for several restarts of workers. A checkpoint resets the count.
_MAX_STARTS = 5
# Begins the script's reply that names the quota which refuses a job.
_QUOTA = "quota:"


class StartOutcome(StrEnum):
    """Whether a stage may begin, and if not, why."""

    BEGUN = "begun"
    """The stage begins, with a fencing token."""
    DONE = "done"
    """The stage is done and its successor has not begun: let the chain continue."""
    DUPLICATE = "duplicate"
    """The stage runs elsewhere, or its successor has begun: drop this message."""
    PAUSED = "paused"
    """The job is paused: drop this message; resuming the job sends another."""
    ENDED = "ended"
    """The job has ended."""
    EXHAUSTED = "exhausted"
    """The stage was begun too often without an end; the job has failed now."""
    NEWER = "newer"
    """The job needs a worker of a newer version: drop this message; another follows later."""
    STILL_NEWER = "still_newer"
    """The same, and the job's events have reported it before."""


class FollowOutcome(StrEnum):
    """Whether another Celery result follows a job, and if not, why."""

    FOLLOWED = "followed"
    """The job's end is stored under it, too."""
    ENDED = "ended"
    """The job has ended already."""
    FULL = "full"
    """As many results as a job may have follow it already."""


class DispatchOutcome(StrEnum):
    """What becomes of a job that is ready for its next stage."""

    EXISTS = "exists"
    """There is a job with this id already."""
    SENT = "sent"
    """Its message is in the queue."""
    WAITING = "waiting"
    """It waits in its tenant queue, or has been sent from there."""


class StageStart(NamedTuple):
    """The reply to a worker that wants to begin a stage.

    Attributes:
        outcome: Whether it may.
        token: The fencing token of the start if it has BEGUN.
        record: The job's record if it has BEGUN.
        candidates: What ``TenantQueues.dispatch`` goes by, now that the queue has room for one more
            message; None if it must ask.
    """

    outcome: StartOutcome
    token: FencingToken = NO_TOKEN
    record: JobRecord | None = None
    candidates: Candidates | None = None


class JobStore(JobReader):
    """Reads and writes jobs.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
        constants: The memory model that new jobs are routed with.
        unacked_index: The key of kombu's index of the messages that workers hold.
        prices: The prices that GPU stages begun here are recorded with.
    """

    def __init__(
        self,
        client: Redis,
        ttl: timedelta,
        constants: MemoryModel = PUBLISHED,
        *,
        unacked_index: str = keys.UNACKED_INDEX,
        prices: GpuPrices = NO_PRICES,
    ) -> None:
        super().__init__(client)
        self._prices = prices
        self._constants = constants
        self._webhook_secrets = WebhookSecrets(client)
        self._ttl_s = int(ttl.total_seconds())
        self._unacked_index = unacked_index

    def webhook_problems(self, job: TrainingJob) -> list[Problem]:
        """Return why a job's webhook could not be delivered."""
        if job.webhook is None or self._webhook_secrets.signing(job.tenant):
            return []
        problem = f"cannot be signed: tenant {job.tenant} has no webhook secret"
        command = f"training-worker webhooks secret create --tenant {job.tenant}"
        remedy = f"create one with POST /v1/webhook-secrets, or {command}"
        return [Problem("webhook", problem, remedy)]

    def create(
        self,
        job_id: str,
        job: TrainingJob,
        result_id: str,
        artifacts: JobArtifacts = NO_ARTIFACTS,
    ) -> DispatchOutcome:
        """Record a validated job, and send it or let it wait.

        Raises:
            QuotaExceededError: A quota of its tenant refuses it.
            InvalidJobError: A job of this id was deleted.
        """
        route = job.route(self._constants)
        label = task_label(job_id, job.name, job.tenant)
        message = stage_message(job_id, result_id, STAGES[0], route.gpu_queue, label=label)
        fields = {
            "status": JobStatus.QUEUED,
            "stage": STAGES[0],
            "stage_number": 0,
            "stage_state": "queued",
            "attempt": 0,
            "type": job.training.type,
            "version": VERSION,
            "tenant": job.tenant,
            "priority": job.priority,
            "job": job.model_dump_json(),
            "result_id": result_id,
            "gpu_queue": route.gpu_queue,
            "reason": route.reason,
            "estimate": json.dumps(asdict(route.estimate)),
            "checkpointed_blocks": route.checkpointed_blocks,
            **artifacts.hash_fields(),
        }
        if job.webhook is not None:
            fields["webhook"] = json.dumps(job.webhook.whole())
        event = JobAccepted(queue=route.gpu_queue, reason=route.reason)
        outcome = scripts.create_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            event=event.model_dump_json(),
            first_queue=message.queue,
            message=message.text,
            fields=_as_strings(fields),
        )
        if outcome.startswith(_QUOTA):
            raise Quotas(self._redis).refusal(job.tenant, outcome.removeprefix(_QUOTA))
        if outcome == DELETED:
            problem = f"is that of the deleted job {job_id}; leave the id out or choose another"
            raise InvalidJobError([Problem("id", problem)])
        return DispatchOutcome(outcome)

    def follow(self, job_id: str, result_id: str) -> FollowOutcome:
        """Let the Celery result of another message follow a job to its end.

        Raises:
            UnknownJobError: There is no such job.
        """
        outcome = scripts.follow_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            result_id=result_id,
        )
        if outcome == "unknown":
            raise UnknownJobError(job_id)
        return FollowOutcome(outcome)

    def send(self, job: JobSummary) -> None:
        """Send the stage that a job waits for."""
        send_waiting(self._redis, job)

    def fields_after_oom(self, job: TrainingJob, larger: MemoryClass) -> dict[str, str]:
        """Return the fields of a job's record that change in the larger class it moves to."""
        # It ran out of memory, so that its estimate is too low by the share that was kept free.
        training = job.training.fitted(AUTO_SHARE**2 * larger.floor_gib, self._constants)
        if training is job.training:
            return {}
        estimate = training.estimate(self._constants)
        return {
            "estimate": json.dumps(asdict(estimate)),
            "checkpointed_blocks": str(training.checkpointed_blocks),
        }

    def begin(
        self,
        job_id: str,
        stage: str,
        *,
        worker: str,
        queue: str,
        tag: str,
        version: int = 1,
        retry_in_s: float = 10.0,
        change_id: str = "",
    ) -> StageStart:
        """Begin a stage, unless another worker has it.

        Args:
            job_id: The job.
            stage: The stage.
            worker: The name of the worker.
            queue: The queue that the message came from.
            tag: The delivery tag of the message. A running stage is taken over once the message
                that started it is no longer held under its own tag.
            version: The version of the message.
            retry_in_s: Seconds until a message for newer workers is sent again.
            change_id: See ``write``.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: The stage has begun and this version cannot read the job, which has
                failed now.
        """
        message = f"the stage {stage} was started {_MAX_STARTS} times and never ended"
        exhausted = JobEnded(status="failed", message=message, code=ErrorCode.TRAINER_FAILED)
        memory_class = class_of(queue)
        reply = scripts.begin_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            unacked_index=self._unacked_index,
            ttl_s=self._ttl_s,
            change_id=change_id,
            stage_number=STAGES.index(stage) + 1,
            stage=stage,
            delivery_tag=tag,
            max_starts=_MAX_STARTS,
            worker=worker,
            queue=queue,
            exhausted_event=exhausted.model_dump_json(),
            exhausted_message=message,
            worker_version=VERSION,
            message_version=version,
            retry_in_s=retry_in_s,
            gpu_class="" if memory_class is None else str(memory_class),
            gpu_price=None if memory_class is None else self._prices.per_hour.get(memory_class),
            currency=self._prices.currency or "",
        )
        if reply[0] == "unknown":
            raise UnknownJobError(job_id)
        outcome = StartOutcome(reply[0])
        if outcome != StartOutcome.BEGUN:
            return StageStart(outcome)
        token = FencingToken(int(reply[1]), tag)
        record = self._started_record(job_id, stage, token, reply[2])
        return StageStart(outcome, token, record, reply[3])

    def requested_state(self, job_id: str, token: FencingToken) -> JobStatus:
        """Return the job's status, which says whether this start is to stop.

        Raises:
            SupersededError: The start is not the newest.
        """
        status = scripts.requested_state(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            token=str(token),
        )
        return _status(job_id, token, status)

    def write(
        self,
        job_id: str,
        token: FencingToken,
        events: Sequence[Event],
        artifacts: JobArtifacts = NO_ARTIFACTS,
        counts: Counts | None = None,
        change_id: str = "",
    ) -> None:
        """Append events, and record artifacts for later stages and starts.

        The start's counts are added in the same change; so in every change for a start. A change
        whose reply was lost may be sent again under the same ``change_id``, and is made once.

        Raises:
            SupersededError: The start is not the newest.
        """
        # A start that leaves something for later starts has made progress.
        fields = artifacts.hash_fields()
        if fields:
            fields["starts"] = "0"
        is_written = scripts.write(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            token=str(token),
            change_id=change_id,
            events=[event.model_dump_json() for event in events],
            fields=fields,
            counts=counts or {},
        )
        if not is_written:
            raise SupersededError(job_id, token.attempt)

    def finish_stage(
        self,
        job_id: str,
        token: FencingToken,
        stage: str,
        record: StageRecord,
        artifacts: JobArtifacts,
        result: dict[str, Any] | None,
        *,
        following: StageMessage | None = None,
        is_shared: bool = False,
        cancelled: bool = False,
        is_gpu_used: bool = True,
        counts: Counts | None = None,
        change_id: str = "",
    ) -> bool:
        """Record that a stage is done; the last stage's ``result`` ends the job.

        Args:
            job_id: The job.
            token: The start's.
            stage: The stage.
            record: What happened in it.
            artifacts: What the stage leaves for later ones.
            result: The job's result, from the last stage only.
            following: Starts the next stage.
            is_shared: Whether the job waits for its tenant's share of that stage's queue.
            cancelled: The job was cancelled, and the result is what was saved of it.
            is_gpu_used: Whether the start used the GPU that it had, and its time counts.
            counts: What the start counted.
            change_id: See ``write``.

        Returns:
            Whether the next stage's message was sent.

        Raises:
            SupersededError: The start is not the newest.
        """
        finished = StageFinished(
            stage=stage,
            attempt=token.attempt,
            seconds=record.seconds or 0.0,
            summary=record.summary or "",
        )
        fields = {f"stage:{stage}": record.model_dump_json(), **artifacts.hash_fields()}
        if result is not None:
            fields |= {"stage_state": "done", "result": json.dumps(result)}
            code = ErrorCode.CANCELLED if cancelled else None
            ended = JobEnded(status="cancelled" if cancelled else "succeeded", code=code)
            self._end(job_id, token, ended, fields, counts, change_id, is_gpu_used, [finished])
            return False
        outcome = scripts.finish_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            token=str(token),
            change_id=change_id,
            event=finished.model_dump_json(),
            fields=fields,
            next_queue=following.queue if following else "",
            message=following.text if following else "",
            is_shared=is_shared,
            is_gpu_used=is_gpu_used,
            counts=counts or {},
        )
        if outcome == "superseded":
            raise SupersededError(job_id, token.attempt)
        return outcome == DispatchOutcome.SENT

    def release(
        self,
        job_id: str,
        token: FencingToken,
        event: Event,
        fields: Mapping[str, str] | None = None,
        *,
        delay_s: float | None = None,
        is_gpu_used: bool = True,
        counts: Counts | None = None,
        change_id: str = "",
    ) -> JobStatus:
        """Give a stage back, so that a later message may begin it.

        Args:
            job_id: The job.
            token: The start's.
            event: The reason, for the job's readers.
            fields: Fields of the record to change with it.
            delay_s: Seconds until ``JobControl.take_due`` returns the job; None if the caller
                sends the next message.
            is_gpu_used: See ``finish_stage``.
            counts: What the start counted.
            change_id: See ``write``.

        Returns:
            The job's status now: PAUSED if it was to be paused; CANCELLING if the stage is to end
            instead, and nothing was released.

        Raises:
            SupersededError: The start is not the newest.
        """
        status = scripts.release_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            token=str(token),
            change_id=change_id,
            event=event.model_dump_json(),
            fields=fields or {},
            delay_s=delay_s,
            is_gpu_used=is_gpu_used,
            counts=counts or {},
        )
        return _status(job_id, token, status)

    def fail(
        self,
        job_id: str,
        token: FencingToken,
        error: JobError,
        counts: Counts | None = None,
        change_id: str = "",
        *,
        is_gpu_used: bool = True,
    ) -> None:
        """End the job with an error; with status CANCELLED if that is the error's code.

        ``write`` explains ``change_id``, and ``finish_stage`` ``is_gpu_used``.

        Raises:
            SupersededError: The start is not the newest.
        """
        is_cancelled = error.code == ErrorCode.CANCELLED
        fields = {
            "error": error.message,
            "error_code": error.code,
            "error_stage": error.stage,
        }
        ended = JobEnded(
            status="cancelled" if is_cancelled else "failed",
            message=error.message,
            code=error.code,
        )
        self._end(job_id, token, ended, fields, counts, change_id, is_gpu_used)

    def _started_record(
        self, job_id: str, stage: str, token: FencingToken, fields: str
    ) -> JobRecord:
        """Return the record of a job that has begun; fail one that this version cannot read."""
        try:
            return parse_record(job_id, hash_of(json.loads(fields)))
        except UnreadableJobError as error:
            error.stage = stage
            self.fail(job_id, token, error)
            raise

    def _end(
        self,
        job_id: str,
        token: FencingToken,
        ended: JobEnded,
        fields: Mapping[str, object],
        counts: Counts | None,
        change_id: str,
        is_gpu_used: bool,
        before: Sequence[Event] = (),
    ) -> None:
        is_ended = scripts.end_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            token=str(token),
            change_id=change_id,
            status=ended.status,
            is_dead_letter=ended.code in DEAD_LETTER_CODES,
            is_gpu_used=is_gpu_used,
            events=[event.model_dump_json() for event in (*before, ended)],
            fields=_as_strings(fields),
            counts=counts or {},
        )
        if not is_ended:
            raise SupersededError(job_id, token.attempt)


def _status(job_id: str, token: FencingToken, reply: str) -> JobStatus:
    if reply == "superseded":
        raise SupersededError(job_id, token.attempt)
    return JobStatus(reply)


def _as_strings(fields: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items()}
