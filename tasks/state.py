"""The state of jobs in Redis: one hash, one capped stream of events and an index, nothing else.

Every change is one Lua script, so that it is whole or absent, and a change made for a stage is
fenced: it carries the attempt number its start was given, and only the newest number may write.
All keys of ours are spelled here, and all have a life time.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, cast

import redis
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from tasks.contract import STAGES
from tasks.errors import ErrorCode, JobError
from tasks.events import Event, JobAccepted, JobEnded, Note, StageFinished, parse_event
from tasks.jobs.job import TrainingJob
from tasks.records import (
    JobRecord,
    JobStatus,
    StageRecord,
    SupersededError,
    UnknownJobError,
    record_of,
)

_INDEX = "training:jobs"
# Some 60 bytes of overhead and 200 of JSON an event: half a megabyte a job at the most.
_MAX_EVENTS = 2000
# A stage that takes its worker down with it (out of memory in the host, say) must not do so
# for ever; five also leaves room for an unlucky night of restarts.
_MAX_STARTS = 5
_RETRY_PAUSE_S = 0.5


def _job_key(job_id: str) -> str:
    return f"training:job:{job_id}"


def _events_key(job_id: str) -> str:
    return f"training:job:{job_id}:events"


class BeginOutcome(StrEnum):
    """What a stage that wants to begin is told."""

    BEGUN = "begun"
    """Go on, with the attempt number."""
    DONE = "done"
    """It is done already and its successor has not begun: let the chain go on."""
    DUPLICATE = "duplicate"
    """It runs elsewhere, or its successor has begun: drop this message."""
    ENDED = "ended"
    """The job is over."""
    EXHAUSTED = "exhausted"
    """It was begun too often without an end; the job has failed now."""


# Shared by all scripts: KEYS[1] job, KEYS[2] events; ARGV[1] life time in seconds.
_PRELUDE = """
local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local function keep()
  redis.call('HSET', KEYS[1], 'updated_at', now)
  redis.call('EXPIRE', KEYS[1], ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[1])
end
local function tell(event)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', MAX_EVENTS, '*', 'event', event)
end
local function ended()
  local s = redis.call('HGET', KEYS[1], 'status')
  return s == 'succeeded' or s == 'failed' or s == 'cancelled'
end
local function finish(status, event, ...)
  redis.call('HSET', KEYS[1], 'status', status, ...)
  tell(event)
end
""".replace("MAX_EVENTS", str(_MAX_EVENTS))

# KEYS[3] index. ARGV: 2 event, 3 id, 4... fields of the hash.
_CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'created_at', now, unpack(ARGV, 4))
tell(ARGV[2])
keep()
redis.call('ZADD', KEYS[3], now, ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', time[1] - ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[1])
return 1
"""

# ARGV: 2 stage number (1 is the first), 3 stage, 4 redelivered (0/1), 5 most starts,
# 6 worker, 7 queue, 8 event of exhaustion, 9 its message.
_BEGIN = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'unknown'} end
if ended() then return {'ended'} end
local wanted = tonumber(ARGV[2])
local current = tonumber(redis.call('HGET', KEYS[1], 'stage_number'))
local state = redis.call('HGET', KEYS[1], 'stage_state')
if wanted < current then return {'duplicate'} end
if wanted == current and state == 'done' then return {'done'} end
if wanted == current and state == 'running' and ARGV[4] == '0' then return {'duplicate'} end
if wanted > current then redis.call('HSET', KEYS[1], 'starts', 0) end
if redis.call('HINCRBY', KEYS[1], 'starts', 1) > tonumber(ARGV[5]) then
  finish('failed', ARGV[8], 'error_code', 'trainer_failed', 'error_stage', ARGV[3],
    'error', ARGV[9])
  keep()
  return {'exhausted'}
end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
if redis.call('HGET', KEYS[1], 'status') == 'queued' then
  redis.call('HSET', KEYS[1], 'status', 'running')
end
redis.call('HSET', KEYS[1], 'stage', ARGV[3], 'stage_number', wanted, 'stage_state', 'running',
  'stage:' .. ARGV[3], cjson.encode({
    queue = ARGV[7], worker = ARGV[6], attempt = attempt, started_at = tonumber(now)}))
tell(cjson.encode({kind = 'stage_started', stage = ARGV[3], attempt = attempt,
  queue = ARGV[7], worker = ARGV[6]}))
keep()
return {'begun', attempt}
"""

# ARGV: 2 attempt, 3 number of events, then those, then fields of the hash.
_WRITE = """
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] or ended() then return 0 end
local first_field = 4 + ARGV[3]
if ARGV[first_field] then redis.call('HSET', KEYS[1], unpack(ARGV, first_field)) end
for i = 4, first_field - 1 do tell(ARGV[i]) end
keep()
return 1
"""

# ARGV: 2 event. Between two stages there is nothing to stop; the next one finds the job ended.
_CANCEL = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'unknown' end
if ended() then return redis.call('HGET', KEYS[1], 'status') end
if redis.call('HGET', KEYS[1], 'stage_state') == 'running' then
  redis.call('HSET', KEYS[1], 'status', 'cancelling')
else
  finish('cancelled', ARGV[2])
end
keep()
return redis.call('HGET', KEYS[1], 'status')
"""


# ARGV: 2 attempt, 3 stage, 4 event. A stage that is done stays so: its successor is what is lost.
_REQUEUE = """
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] or ended() then return 0 end
if redis.call('HGET', KEYS[1], 'stage_state') == 'running' then
  if redis.call('HGET', KEYS[1], 'stage') ~= ARGV[3] then return 0 end
  redis.call('HSET', KEYS[1], 'stage_state', 'queued')
end
tell(ARGV[4])
keep()
return 1
"""


class JobState:
    """Reads and writes jobs.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
    """

    def __init__(self, client: "Redis", ttl: timedelta) -> None:
        self._redis = client
        self._ttl_s = int(ttl.total_seconds())
        self._create = client.register_script(_PRELUDE + _CREATE)
        self._begin = client.register_script(_PRELUDE + _BEGIN)
        self._write = client.register_script(_PRELUDE + _WRITE)
        self._cancel = client.register_script(_PRELUDE + _CANCEL)
        self._requeue = client.register_script(_PRELUDE + _REQUEUE)

    def create(self, job_id: str, job: TrainingJob, result_id: str) -> bool:
        """Record a checked job; False where there is one of this id already."""
        route = job.route()
        fields = {
            "status": JobStatus.QUEUED,
            "stage": STAGES[0],
            "stage_number": 0,
            "stage_state": "queued",
            "attempt": 0,
            "job": job.model_dump_json(),
            "result_id": result_id,
            "gpu_queue": route.gpu_queue,
            "reason": route.reason,
        }
        event = JobAccepted(queue=route.gpu_queue, reason=route.reason)
        flat = [str(item) for pair in fields.items() for item in pair]
        keys = [*self._keys(job_id), _INDEX]
        args: list[str | int] = [self._ttl_s, event.model_dump_json(), job_id, *flat]
        return bool(self._create(keys=keys, args=args))

    def get(self, job_id: str) -> JobRecord:
        """All that is known of a job.

        Raises:
            UnknownJobError: There is no such job.
        """
        fields = cast("dict[str, str]", self._redis.hgetall(_job_key(job_id)))
        if not fields:
            raise UnknownJobError(job_id)
        return record_of(job_id, fields)

    def newest(self, limit: int) -> list[JobRecord]:
        """The jobs submitted last, newest first."""
        found = []
        for job_id in cast("list[str]", self._redis.zrevrange(_INDEX, 0, limit - 1)):
            fields = cast("dict[str, str]", self._redis.hgetall(_job_key(job_id)))
            if fields:
                found.append(record_of(job_id, fields))
        return found

    def unfinished(self) -> list[JobRecord]:
        """All jobs that are not over."""
        ids = cast("list[str]", self._redis.zrange(_INDEX, 0, -1))
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hget(_job_key(job_id), "status")
            statuses = cast("list[str | None]", pipe.execute())
        found = []
        for job_id, status in zip(ids, statuses, strict=True):
            if status is not None and not JobStatus(status).ended:
                fields = cast("dict[str, str]", self._redis.hgetall(_job_key(job_id)))
                if fields:
                    found.append(record_of(job_id, fields))
        return found

    def requeue(self, job_id: str, attempt: int, stage: str) -> bool:
        """Let a stage whose message was lost begin again; False where it has gone on meanwhile."""
        note = Note(level="warning", message=f"the message of {stage} was lost; it is sent again")
        args: list[str | int] = [self._ttl_s, attempt, stage, note.model_dump_json()]
        return bool(self._requeue(keys=self._keys(job_id), args=args))

    def begin(
        self, job_id: str, stage: str, *, worker: str, queue: str, redelivered: bool
    ) -> tuple[BeginOutcome, int]:
        """Ask to begin a stage.

        Args:
            job_id: The job.
            stage: The stage.
            worker: Who asks, for people.
            queue: Where the message came from.
            redelivered: The broker had handed this very message to a worker before and took it
                back; only then may a stage that runs be taken over.

        Returns:
            What to do, and the attempt number where that is BEGUN (0 otherwise).

        Raises:
            UnknownJobError: There is no such job.
        """
        message = f"the stage {stage} was started {_MAX_STARTS} times and never ended"
        event = JobEnded(status="failed", message=message, code=ErrorCode.TRAINER_FAILED)
        args: list[str | int] = [
            self._ttl_s,
            STAGES.index(stage) + 1,
            stage,
            int(redelivered),
            _MAX_STARTS,
            worker,
            queue,
            event.model_dump_json(),
            message,
        ]
        answer = self._begin(keys=self._keys(job_id), args=args)
        if answer[0] == "unknown":
            raise UnknownJobError(job_id)
        return BeginOutcome(answer[0]), int(answer[1]) if len(answer) > 1 else 0

    def emit(self, job_id: str, attempt: int, event: Event) -> None:
        """Tell the job's readers something.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        self._fenced(job_id, attempt, {}, event)

    def set_refs(self, job_id: str, attempt: int, refs: dict[str, str], event: Event) -> None:
        """Record store keys for later stages and starts, and tell of it.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        self._fenced(job_id, attempt, {f"ref:{k}": v for k, v in refs.items()}, event)

    def finish_stage(
        self,
        job_id: str,
        attempt: int,
        stage: str,
        record: StageRecord,
        refs: dict[str, str],
        result: dict[str, Any] | None,
    ) -> None:
        """Record that a stage is done; the last stage's ``result`` ends the job.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        finished = StageFinished(
            stage=stage,
            attempt=attempt,
            seconds=record.seconds or 0.0,
            summary=record.summary or "",
        )
        fields = {
            "stage_state": "done",
            f"stage:{stage}": record.model_dump_json(),
            **{f"ref:{key}": value for key, value in refs.items()},
        }
        if result is None:
            self._fenced(job_id, attempt, fields, finished)
        else:
            fields |= {"status": JobStatus.SUCCEEDED, "result": json.dumps(result)}
            self._fenced(job_id, attempt, fields, finished, JobEnded(status="succeeded"))

    def release(
        self, job_id: str, attempt: int, event: Event, refs: Mapping[str, str] | None = None
    ) -> None:
        """Give a stage back to the queue, so that its next message may begin it.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        fields = {f"ref:{key}": value for key, value in (refs or {}).items()}
        self._fenced(job_id, attempt, {"stage_state": "queued", "starts": "0", **fields}, event)

    def fail(self, job_id: str, attempt: int, error: JobError) -> None:
        """End the job with an error; a cancelled one as cancelled.

        Raises:
            SupersededError: The attempt is not the newest.
        """
        cancelled = error.code == ErrorCode.CANCELLED
        status = JobStatus.CANCELLED if cancelled else JobStatus.FAILED
        self._fenced(
            job_id,
            attempt,
            {
                "status": status,
                "error": error.message,
                "error_code": error.code,
                "error_stage": error.stage,
            },
            JobEnded(status=status.value, message=error.message, code=error.code),
        )

    def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job: at once while it waits, within a step while it runs.

        Returns:
            Its status now; an ended job keeps its own.

        Raises:
            UnknownJobError: There is no such job.
        """
        event = JobEnded(status="cancelled", code=ErrorCode.CANCELLED)
        args: list[str | int] = [self._ttl_s, event.model_dump_json()]
        answer = self._cancel(keys=self._keys(job_id), args=args)
        if answer == "unknown":
            raise UnknownJobError(job_id)
        return JobStatus(answer)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether somebody wants the running job to stop."""
        return self._redis.hget(_job_key(job_id), "status") == JobStatus.CANCELLING

    def events(
        self, job_id: str, *, after: str = "0", block_ms: int | None = None
    ) -> Iterator[tuple[str, Event]]:
        """The job's events after a position, each with its own position.

        Args:
            job_id: The job.
            after: A position that this method gave; ``0`` starts with the oldest.
            block_ms: Wait this long for the first one; None does not wait.
        """
        answer = self._redis.xread({_events_key(job_id): after}, block=block_ms)
        for _, entries in cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", answer):
            for position, fields in entries:
                yield position, parse_event(fields["event"])

    def _fenced(self, job_id: str, attempt: int, fields: dict[str, str], *events: Event) -> None:
        told = [event.model_dump_json() for event in events]
        flat = [str(item) for pair in fields.items() for item in pair]
        written = self._write(
            keys=self._keys(job_id),
            args=[str(self._ttl_s), str(attempt), str(len(told)), *told, *flat],
        )
        if not written:
            raise SupersededError(job_id, attempt)

    @staticmethod
    def _keys(job_id: str) -> list[str]:
        return [_job_key(job_id), _events_key(job_id)]


def connect(broker_url: str, *, patience: timedelta = timedelta(0)) -> "Redis":
    """A connection to the server that Celery calls ``broker_url``; made when it is first used.

    Args:
        broker_url: A ``redis://``, ``rediss://`` or ``redis+socket://`` URL.
        patience: For how long a command is tried again while the server is away.
    """
    url = broker_url.replace("redis+socket://", "unix://", 1)
    retries = int(patience.total_seconds() / _RETRY_PAUSE_S)
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=5,
        health_check_interval=30,
        retry=Retry(ConstantBackoff(_RETRY_PAUSE_S), retries),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )
