"""The state of jobs in Redis: one hash and one capped stream of events a job, and indexes of all.

Every change is one Lua script of ``tasks/state/scripts.py``, so that it is whole or absent, and a
change made for a stage is fenced: it carries the attempt number its start was given, and only the
newest number may write. What people and sweepers do to jobs is in ``tasks/state/control.py``.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar, cast

import redis
from pydantic import ValidationError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from routing.estimate import PUBLISHED, MemoryModel
from routing.queues import stage_queue
from tasks.contract import EVENT_FIELD, STAGES, events_key, record_key
from tasks.errors import (
    DEAD_LETTER_CODES,
    ErrorCode,
    JobError,
    SupersededError,
    UnknownJobError,
    UnreadableJobError,
)
from tasks.events import Event, JobAccepted, JobEnded, Note, StageFinished, parse_event
from tasks.jobs.job import TrainingJob
from tasks.metrics import Counts
from tasks.state import keys, scripts
from tasks.state.record import (
    NEXT_QUEUE,
    VERSION,
    JobRecord,
    JobStatus,
    JobSummary,
    StageRecord,
    head_of,
    record_of,
    waiting_queue,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)

# A stage that takes its worker down with it (out of memory in the host, say) must not do so
# for ever; five also leaves room for an unlucky night of restarts. A checkpoint starts the count
# anew.
_MAX_STARTS = 5
_RETRY_PAUSE_S = 0.5


class StartOutcome(StrEnum):
    """What a stage that wants to begin is told."""

    BEGUN = "begun"
    """Go on, with the attempt number."""
    DONE = "done"
    """It is done already and its successor has not begun: let the chain go on."""
    DUPLICATE = "duplicate"
    """It runs elsewhere, or its successor has begun: drop this message."""
    PAUSED = "paused"
    """Somebody has paused the job: drop this message, another one follows when it is resumed."""
    ENDED = "ended"
    """The job is over."""
    EXHAUSTED = "exhausted"
    """It was begun too often without an end; the job has failed now."""
    NEWER = "newer"
    """It is for a worker of a newer version, and is sent again in a while: drop this message."""
    STILL_NEWER = "still_newer"
    """The same, and the job's readers were told before."""


class DispatchOutcome(StrEnum):
    """What became of a job that wants to begin or go on."""

    EXISTS = "exists"
    """There is a job of this id already."""
    SENT = "sent"
    """Its chain is to be sent."""
    WAITING = "waiting"
    """Nothing is to be sent: the tenant queue does that when it dispatches the job, or has done."""


class JobStore:
    """Reads jobs, and writes what their stages do.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
        constants: What the jobs that are recorded here are routed with.
        unacked_index: The key of kombu's index of the messages that workers hold.
    """

    def __init__(
        self,
        client: "Redis",
        ttl: timedelta,
        constants: MemoryModel = PUBLISHED,
        *,
        unacked_index: str = keys.UNACKED_INDEX,
    ) -> None:
        self._constants = constants
        self._redis = client
        self._ttl_s = int(ttl.total_seconds())
        self._unacked_index = unacked_index

    def create(
        self,
        job_id: str,
        job: TrainingJob,
        result_id: str,
        refs: Mapping[str, str] | None = None,
    ) -> DispatchOutcome:
        """Record a checked job, and let it begin or wait."""
        route = job.route(self._constants)
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
            **_refs(refs or {}),
        }
        event = JobAccepted(queue=route.gpu_queue, reason=route.reason)
        outcome = scripts.create_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            event=event.model_dump_json(),
            first_queue=stage_queue(STAGES[0], ""),
            fields=_texts(fields),
        )
        return DispatchOutcome(outcome)

    def get(self, job_id: str) -> JobRecord:
        """All that is known of a job.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: This version cannot read it.
        """
        for found, fields in self._fields([job_id]).items():
            return record_of(found, fields)
        raise UnknownJobError(job_id)

    def get_all(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Those of the jobs that there are, without those that this version cannot read."""
        return _readable(record_of, self._fields(job_ids))

    def head(self, job_id: str) -> JobSummary:
        """What every version can read of a job.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: It says nothing that this version knows.
        """
        for found, fields in self._fields([job_id]).items():
            return head_of(found, fields)
        raise UnknownJobError(job_id)

    def heads(self, job_ids: Sequence[str]) -> list[JobSummary]:
        """The same of those of the jobs that there are."""
        return _readable(head_of, self._fields(job_ids))

    def there_are(self, job_ids: Collection[str]) -> set[str]:
        """Those of the ids that are of a job, readable or not."""
        ids = list(job_ids)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(keys_of(job_id)[0])
            return {it for it, there in zip(ids, pipe.execute(), strict=True) if there}

    def _fields(self, job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Job to the fields of its hash, of those that there are."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(keys_of(job_id)[0])
            hashes = cast("list[dict[str, str]]", pipe.execute())
        return {it: fields for it, fields in zip(job_ids, hashes, strict=True) if fields}

    def next_queue(self, job_id: str) -> str | None:
        """The queue that the job's next stage is to be sent to; None where that is not now."""
        names = ("status", "stage", "stage_state", "gpu_queue", "tenant_queue", f"ref:{NEXT_QUEUE}")
        values = cast("list[str | None]", self._redis.hmget(keys_of(job_id)[0], list(names)))
        fields = {name: value for name, value in zip(names, values, strict=True) if value}
        return None if not fields or "tenant_queue" in fields else waiting_queue(fields)

    def newest(self, limit: int) -> list[JobRecord]:
        """The jobs submitted last, newest first."""
        return self.get_all(cast("list[str]", self._redis.zrevrange(keys.JOBS, 0, limit - 1)))

    def submitted(
        self, tenant: str | None, after: tuple[float, str] | None, limit: int
    ) -> list[tuple[float, str]]:
        """When jobs were submitted, and their ids, newest first.

        Args:
            tenant: Whose; None: of all.
            after: One of those before: only older ones than that.
            limit: How many.
        """
        index = keys.JOBS if tenant is None else f"{keys.TENANT_JOBS_PREFIX}{tenant}"
        most = "+inf" if after is None else repr(after[0])
        # Those of the very same time come in the order of their ids, the last first.
        start = 0
        while True:
            found = self._redis.zrevrangebyscore(
                index, most, "-inf", start=start, num=limit, withscores=True
            )
            entries = [(score, job_id) for job_id, score in cast("list[tuple[str, float]]", found)]
            older = [it for it in entries if after is None or it < after]
            if older or len(entries) < limit:
                return older
            start += limit

    def begin(
        self,
        job_id: str,
        stage: str,
        *,
        worker: str,
        queue: str,
        tag: str,
        version: int = 1,
        again_in_s: float = 10.0,
    ) -> tuple[StartOutcome, int, JobRecord | None]:
        """Ask to begin a stage.

        Args:
            job_id: The job.
            stage: The stage.
            worker: Who asks, for people.
            queue: Where the message came from.
            tag: The message's delivery tag. A stage that runs is taken over where the message of
                its start is no longer held under the tag it was given.
            version: The message's.
            again_in_s: Seconds until a message that is for newer workers is sent again.

        Returns:
            What to do; and where that is BEGUN, the attempt number (0 otherwise) and the record.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: It began, and this version cannot read it; the job has failed now.
        """
        message = f"the stage {stage} was started {_MAX_STARTS} times and never ended"
        event = JobEnded(status="failed", message=message, code=ErrorCode.TRAINER_FAILED)
        answer = scripts.begin_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            unacked_index=self._unacked_index,
            ttl_s=self._ttl_s,
            stage_number=STAGES.index(stage) + 1,
            stage=stage,
            delivery_tag=tag,
            max_starts=_MAX_STARTS,
            worker=worker,
            queue=queue,
            exhausted_event=event.model_dump_json(),
            exhausted_message=message,
            worker_version=VERSION,
            message_version=version,
            retry_in_s=again_in_s,
        )
        if answer[0] == "unknown":
            raise UnknownJobError(job_id)
        outcome = StartOutcome(answer[0])
        if outcome != StartOutcome.BEGUN:
            return outcome, 0, None
        attempt = int(answer[1])
        try:
            return outcome, attempt, record_of(job_id, paired(json.loads(answer[2])))
        except UnreadableJobError as error:
            error.stage = stage
            self.fail(job_id, attempt, error)
            raise

    def write(
        self,
        job_id: str,
        attempt: int,
        events: Sequence[Event],
        refs: Mapping[str, str],
        counts: Counts | None = None,
    ) -> None:
        """Tell the job's readers something, and record store keys for later stages and starts.

        As in all that a start writes, what it counted counts with it, once.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        # What leaves something for later starts has not been started in vain.
        fields = {**_refs(refs), "starts": "0"} if refs else {}
        is_written = scripts.write(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            attempt=attempt,
            events=[event.model_dump_json() for event in events],
            fields=fields,
            counts=counts or {},
        )
        if not is_written:
            raise SupersededError(job_id, attempt)

    def finish_stage(
        self,
        job_id: str,
        attempt: int,
        stage: str,
        record: StageRecord,
        refs: dict[str, str],
        result: dict[str, Any] | None,
        *,
        fair_share_queue: str | None = None,
        cancelled: bool = False,
        counts: Counts | None = None,
    ) -> bool:
        """Record that a stage is done; the last stage's ``result`` ends the job.

        Args:
            job_id: The job.
            attempt: The start's number.
            stage: The stage.
            record: What happened in it.
            refs: Store keys for later stages.
            result: The job's; the last stage's only.
            fair_share_queue: The next stage's queue if the job waits for its tenant's share of it.
            cancelled: The result is what was saved of a job that somebody cancelled.
            counts: What the start counted.

        Returns:
            Whether the next stage's message is to be sent now.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        finished = StageFinished(
            stage=stage,
            attempt=attempt,
            seconds=record.seconds or 0.0,
            summary=record.summary or "",
        )
        fields = {f"stage:{stage}": record.model_dump_json(), **_refs(refs)}
        if result is not None:
            fields |= {"stage_state": "done", "result": json.dumps(result)}
            code = ErrorCode.CANCELLED if cancelled else None
            ended = JobEnded(status="cancelled" if cancelled else "succeeded", code=code)
            self._ended(job_id, attempt, [finished, ended], fields, counts)
            return False
        outcome = scripts.finish_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            attempt=attempt,
            event=finished.model_dump_json(),
            fields=fields,
            fair_share_queue=fair_share_queue,
            counts=counts or {},
        )
        if outcome == "superseded":
            raise SupersededError(job_id, attempt)
        return outcome == DispatchOutcome.SENT

    def release(
        self,
        job_id: str,
        attempt: int,
        event: Event,
        fields: Mapping[str, str] | None = None,
        *,
        delay_s: float | None = None,
        counts: Counts | None = None,
    ) -> JobStatus:
        """Give a stage back, so that a later message may begin it.

        Args:
            job_id: The job.
            attempt: The start's number.
            event: Tells the job's readers why.
            fields: Fields of the record to change with it.
            delay_s: Seconds until ``JobControl.take_due`` gives it out; None leaves the next
                message to the caller.
            counts: What the start counted.

        Returns:
            The job's status now: PAUSED where somebody wanted that meanwhile, CANCELLING where
            the stage is to be ended instead; nothing was released then.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        status = scripts.release_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            attempt=attempt,
            event=event.model_dump_json(),
            fields=fields or {},
            delay_s=delay_s,
            counts=counts or {},
        )
        return self._status(job_id, attempt, status)

    def fail(
        self, job_id: str, attempt: int, error: JobError, counts: Counts | None = None
    ) -> None:
        """End the job with an error; a cancelled one as cancelled.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        cancelled = error.code == ErrorCode.CANCELLED
        fields = {
            "error": error.message,
            "error_code": error.code,
            "error_stage": error.stage,
        }
        status: Any = JobStatus.CANCELLED if cancelled else JobStatus.FAILED
        ended = JobEnded(status=status.value, message=error.message, code=error.code)
        self._ended(job_id, attempt, [ended], fields, counts)

    def requested_state(self, job_id: str, attempt: int) -> JobStatus:
        """Return the job's status, which says whether this start is to stop.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        status = scripts.requested_state(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            attempt=attempt,
        )
        return self._status(job_id, attempt, status)

    def events(
        self, job_id: str, *, after: str = "0", block_ms: int | None = None
    ) -> Iterator[tuple[str, Event]]:
        """The job's events after a position, each with its own position.

        Args:
            job_id: The job.
            after: A position that this method gave; ``0`` starts with the oldest.
            block_ms: Wait this long for the first one; None does not wait.
        """
        answer = self._redis.xread({keys_of(job_id)[1]: after}, block=block_ms)
        for _, entries in cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", answer):
            for position, fields in entries:
                yield position, event_in(fields[EVENT_FIELD])

    def _ended(
        self,
        job_id: str,
        attempt: int,
        events: Sequence[Event],
        fields: dict[str, str],
        counts: Counts | None,
    ) -> None:
        ended = events[-1]
        assert isinstance(ended, JobEnded)
        is_ended = scripts.end_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            attempt=attempt,
            status=ended.status,
            is_dead_letter=ended.code in DEAD_LETTER_CODES,
            events=[event.model_dump_json() for event in events],
            fields=_texts(fields),
            counts=counts or {},
        )
        if not is_ended:
            raise SupersededError(job_id, attempt)

    @staticmethod
    def _status(job_id: str, attempt: int, answer: str) -> JobStatus:
        if answer == "superseded":
            raise SupersededError(job_id, attempt)
        return JobStatus(answer)


def _readable(
    read: Callable[[str, dict[str, str]], T], found: dict[str, dict[str, str]]
) -> list[T]:
    read_ones = []
    for job_id, fields in found.items():
        try:
            read_ones.append(read(job_id, fields))
        except UnreadableJobError as error:
            logger.warning("%s; left out", error)
    return read_ones


def event_in(text: str) -> Event:
    """An event of a job's stream; of one that a newer version tells, that it does."""
    try:
        return parse_event(text)
    except ValidationError:
        kind = json.loads(text).get("kind")
        return Note(level="info", message=f"a newer version tells of {kind!r}")


def paired(flat: Sequence[str]) -> dict[str, str]:
    """A hash as Lua gives it: names and values in turns."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def keys_of(job_id: str) -> list[str]:
    """The keys of a job: its hash and its stream of events."""
    return [record_key(job_id), events_key(job_id)]


def _texts(fields: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items()}


def _refs(refs: Mapping[str, str]) -> dict[str, str]:
    return {f"ref:{key}": value for key, value in refs.items()}


def connect(broker_url: str, *, patience: timedelta = timedelta(0)) -> "Redis":
    """A connection to the server that Celery calls ``broker_url``; made when it is first used.

    Args:
        broker_url: A ``redis://``, ``rediss://`` or ``redis+socket://`` URL.
        patience: For how long a command is tried again while the server is away.
    """
    retries = int(patience.total_seconds() / _RETRY_PAUSE_S)
    return Redis.from_url(
        **_connection(broker_url),
        socket_timeout=10,
        retry=Retry(ConstantBackoff(_RETRY_PAUSE_S), retries),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def connect_async(broker_url: str) -> AsyncRedis:
    """The same for an event loop, for one who waits for answers longer than others."""
    return AsyncRedis.from_url(**_connection(broker_url), socket_timeout=30)


def _connection(broker_url: str) -> dict[str, Any]:
    url = broker_url.replace("redis+socket://", "unix://", 1)
    # A network that swallows everything is noticed; a socket in the file system has none.
    network = {} if url.startswith("unix") else {"socket_keepalive": True}
    always = {"decode_responses": True, "socket_connect_timeout": 5, "health_check_interval": 30}
    return {"url": url, **always, **network}
