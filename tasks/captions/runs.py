"""Caption runs in Redis: what is to be captioned, how far a worker is, and the captions so far.

A run is a hash, and its captions another one, by the names of the files in the upload. Both expire
a day after their last change; of a tenant's ended runs, only the newest few are kept. Removing a
run cancels it: its worker finds that out and stops.
"""

import json
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import timedelta
from importlib.resources import files
from typing import Any, Literal, NamedTuple, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import LockError
from redis.lock import Lock

from tasks.captions.requests import CaptionRequestDocument
from tasks.clock import broker_time
from tasks.errors import ErrorCode, JobError
from tasks.redis_script import Key, ScriptFolder
from tasks.strict_model import StrictModel

RunState = Literal["waiting", "running", "done", "failed"]
ENDED: frozenset[RunState] = frozenset({"done", "failed"})
"""The states that are final."""

_RUN = "training:captions:run:"
_TEXTS = "training:captions:texts:"
_LEASE = "training:captions:lease:"
# Sorted set: what each worker carries out, as JSON, by the end of its lease.
_RUNNING = "training:captions:running"
# Before a tenant: a sorted set of its runs, by the time of their start.
_OF_TENANT = "training:captions:tenant:"
# Sorted set: all runs that have not ended, by when the broker was last seen to have their message;
# 0 before the first look.
_UNFINISHED = "training:captions:unfinished"
_TTL = timedelta(days=1)
MAX_ACTIVE = 2
"""The runs of a tenant at a time."""
MAX_ENDED = 10
"""The ended runs of a tenant that are kept: each may be megabytes of names and captions."""
MAX_ATTEMPTS = 4
"""Starts of a run by workers, each of which was lost or met a transient error."""
# A start that has not renewed its lease for this long, and whose message was not delivered again.
_LOST_AFTER_S = 3600.0

_lua = ScriptFolder(files("tasks.captions") / "lua", {})


@_lua.script
def write_run(
    *, run: Key, texts: Key, ttl_s: int, fields: Mapping[str, str], captions: Mapping[str, str]
) -> int:
    """Change a run that exists."""
    raise NotImplementedError


class TooManyCaptionRunsError(JobError):
    """The tenant has as many runs as it may have at a time."""

    def __init__(self) -> None:
        super().__init__(
            f"{MAX_ACTIVE} runs of this tenant write captions already; wait for one, or cancel it",
            ErrorCode.QUOTA_EXCEEDED,
        )


class CaptionRun(StrictModel):
    """A run as it is now."""

    id: str
    request: CaptionRequestDocument
    created_at: float
    updated_at: float
    state: RunState
    done: int = 0
    total: int = 0
    attempts: int = 0
    error: str | None = None


class RunningCaptions(NamedTuple):
    """A run that a worker carries out."""

    queue: str
    worker: str
    tenant: str
    run_id: str


class CaptionRuns:
    """The caption runs of the fleet.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def create(self, request: CaptionRequestDocument) -> tuple[CaptionRun, bool]:
        """Record a run, or find the tenant's unfinished run of the same request.

        Returns:
            The run, and whether it is new and is to be sent.

        Raises:
            TooManyCaptionRunsError: The tenant has too many runs that have not ended.
        """
        tenant_key = f"{_OF_TENANT}{request.tenant}"

        def change(pipe: Pipeline) -> tuple[CaptionRun, bool]:
            ids = cast("list[str]", pipe.zrange(tenant_key, 0, -1))
            active = [run for run_id in ids if (run := self._unfinished(run_id)) is not None]
            for run in active:
                if run.request == request:
                    pipe.multi()
                    return run, False
            if len(active) >= MAX_ACTIVE:
                raise TooManyCaptionRunsError
            now, run_id = broker_time(self._redis), uuid.uuid4().hex
            run = CaptionRun(
                id=run_id, request=request, created_at=now, updated_at=now, state="waiting"
            )
            active_ids = {it.id for it in active}
            surplus = [it for it in ids if it not in active_ids][:-MAX_ENDED]
            pipe.multi()
            if surplus:
                pipe.zrem(tenant_key, *surplus)
                pipe.delete(*(f"{prefix}{it}" for it in surplus for prefix in (_RUN, _TEXTS)))
            pipe.zadd(tenant_key, {run_id: now})
            pipe.expire(tenant_key, _TTL)
            pipe.zadd(_UNFINISHED, {run_id: 0})
            pipe.expire(_UNFINISHED, _TTL)
            fields = run.model_dump(mode="json", exclude={"id", "request"}, exclude_none=True)
            texts: dict[Any, Any] = {name: str(value) for name, value in fields.items()}
            texts["request"] = request.model_dump_json()
            pipe.hset(f"{_RUN}{run_id}", mapping=texts)
            pipe.expire(f"{_RUN}{run_id}", _TTL)
            return run, True

        transaction = cast("Callable[..., tuple[CaptionRun, bool]]", self._redis.transaction)
        return transaction(change, tenant_key, value_from_callable=True)

    def _unfinished(self, run_id: str) -> CaptionRun | None:
        """Return a run that has not ended; what others hold is not read."""
        if self._redis.hget(f"{_RUN}{run_id}", "state") in ENDED:
            return None
        run = self.get(run_id)
        return None if run is None or run.state in ENDED else run

    def get(self, run_id: str) -> CaptionRun | None:
        """Return a run; None if there is none of this id, or it was cancelled or has expired."""
        fields = cast("dict[str, str]", self._redis.hgetall(f"{_RUN}{run_id}"))
        if "request" not in fields:
            return None
        document: dict[str, Any] = {
            **fields,
            "id": run_id,
            "request": json.loads(fields["request"]),
        }
        for name in ("created_at", "updated_at"):
            document[name] = float(document[name])
        for name in ("done", "total", "attempts"):
            document[name] = int(document[name])
        run = CaptionRun.model_validate(document)
        if run.state == "running" and self._is_lost(run):
            return run.model_copy(update={"state": "failed", "error": "its worker was lost"})
        return run

    def _is_lost(self, run: CaptionRun) -> bool:
        is_late = broker_time(self._redis) - run.updated_at > _LOST_AFTER_S
        return is_late and not self._redis.exists(f"{_LEASE}{run.id}")

    def captions(self, run_id: str) -> dict[str, str]:
        """Return a run's captions so far, by the names of the files in the upload."""
        return cast("dict[str, str]", self._redis.hgetall(f"{_TEXTS}{run_id}"))

    def lease(self, run_id: str, ttl_s: float) -> Lock:
        """Return the lock of the one worker that carries out a run, not acquired yet."""
        lease: Lock = self._redis.lock(f"{_LEASE}{run_id}", timeout=ttl_s, thread_local=False)
        return lease

    def show(self, run: CaptionRun, worker: str, ttl_s: float) -> None:
        """Show in the fleet that a worker carries a run out, for a while; 0 s hides it."""
        request = run.request
        entry = json.dumps(RunningCaptions(request.queue, worker, request.tenant, run.id))
        now = broker_time(self._redis)
        with self._redis.pipeline() as pipe:
            pipe.zadd(_RUNNING, {entry: now + ttl_s})
            pipe.zremrangebyscore(_RUNNING, "-inf", now)
            pipe.expire(_RUNNING, _TTL)
            pipe.execute()

    def begin(self, run: CaptionRun) -> bool:
        """Record a worker's start; False if the run was cancelled meanwhile."""
        return self._write(run, state="running", attempts=run.attempts + 1, done=0)

    def give_back(self, run: CaptionRun) -> bool:
        """Let another worker begin again; False if the run was cancelled meanwhile."""
        return self._write(run, state="waiting", attempts=run.attempts)

    def advance(
        self, run: CaptionRun, done: int, total: int, captions: Mapping[str, str] | None = None
    ) -> bool:
        """Record how far a run is, and captions; False if it was cancelled meanwhile."""
        return self._write(run, captions, done=done, total=total)

    def finish(self, run: CaptionRun) -> None:
        """Record that every image has its caption."""
        self._end(run, state="done")

    def fail(self, run: CaptionRun, error: str) -> None:
        """Record why a run ended; its captions so far stay."""
        self._end(run, state="failed", error=error)

    def remove(self, run: CaptionRun) -> None:
        """Cancel a run, and remove it with its captions."""
        with self._redis.pipeline() as pipe:
            pipe.delete(f"{_RUN}{run.id}", f"{_TEXTS}{run.id}")
            pipe.zrem(f"{_OF_TENANT}{run.request.tenant}", run.id)
            pipe.zrem(_UNFINISHED, run.id)
            pipe.execute()

    def without_message(self, sent: Collection[str], patience_s: float) -> list[CaptionRun]:
        """Return the runs that are to be sent again: their message was lost.

        A run is returned once in that time, until it ends or expires.

        Args:
            sent: The ids of the runs that the broker has a message of.
            patience_s: How long a message must be missing.
        """
        looked_at = cast(
            "list[tuple[str, float]]", self._redis.zrange(_UNFINISHED, 0, -1, withscores=True)
        )
        now, lost, seen, ended = broker_time(self._redis), [], {}, []
        for run_id, seen_at in looked_at:
            run = self._unfinished(run_id)
            if run is None:
                ended.append(run_id)
            elif run_id in sent or not seen_at:
                seen[run_id] = now
            elif now - seen_at >= patience_s:
                seen[run_id] = now
                lost.append(run)
        with self._redis.pipeline() as pipe:
            if ended:
                pipe.zrem(_UNFINISHED, *ended)
            if seen:
                pipe.zadd(_UNFINISHED, cast("dict[Any, Any]", seen), xx=True)
                pipe.expire(_UNFINISHED, _TTL)
            pipe.execute()
        return lost

    def _end(self, run: CaptionRun, state: RunState, **fields: str) -> None:
        self._write(run, None, state=state, **fields)
        self._redis.zrem(_UNFINISHED, run.id)

    def _write(
        self, run: CaptionRun, captions: Mapping[str, str] | None = None, **fields: object
    ) -> bool:
        exists = write_run(
            self._redis,
            run=f"{_RUN}{run.id}",
            texts=f"{_TEXTS}{run.id}",
            ttl_s=int(_TTL.total_seconds()),
            fields={
                "updated_at": str(broker_time(self._redis)),
                **{name: str(value) for name, value in fields.items()},
            },
            captions=captions or {},
        )
        return bool(exists)


def running_captions(client: Redis) -> list[RunningCaptions]:
    """Return the runs that workers carry out."""
    entries = cast("list[str]", client.zrangebyscore(_RUNNING, broker_time(client), "inf"))
    return [RunningCaptions(*json.loads(entry)) for entry in entries]


def release(lease: Lock) -> None:
    """Release a lease, unless it was lost."""
    with suppress(LockError):
        lease.release()
