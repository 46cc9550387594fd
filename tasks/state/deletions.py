"""Deleted jobs: their tombstones, and what of them is still to be removed from the store.

A deletion is one change in the broker, so that no reader sees half a job. The files follow: see
``tasks/deletion.py``.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple, cast

from redis import Redis

from tasks.clock import broker_time
from tasks.contract import events_key, record_key
from tasks.errors import InvalidStateError, UnknownJobError
from tasks.state import scripts
from tasks.state.keys import DELETIONS
from tasks.state.record import DELETED, JobRecord


class Deletion(NamedTuple):
    """A deleted job.

    Attributes:
        job_id: Its id.
        tenant: Its tenant.
        deleted_at: When it was deleted, in seconds since 1970.
        remains: What the store may still have: keys, and prefixes that end with a slash.
    """

    job_id: str
    tenant: str
    deleted_at: float
    remains: tuple[str, ...]


class Deletions:
    """Deletes records of ended jobs, and keeps account of their files.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long the tombstone of a deleted job keeps its id from being used again.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis = client
        self._ttl_s = int(ttl.total_seconds())

    def delete(self, record: JobRecord, remains: Sequence[str]) -> bool:
        """Delete a job's record; return False if it has changed since it was read.

        Args:
            record: The job.
            remains: What the store has of it.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It has not ended, or its results are being copied.
        """
        outcome = scripts.delete_job(
            self._redis,
            job_key=record_key(record.id),
            events_key=events_key(record.id),
            ttl_s=self._ttl_s,
            attempt=record.attempt,
            status=record.status,
            remains=json.dumps(list(remains)),
        )
        match outcome:
            case "unknown":
                raise UnknownJobError(record.id)
            case "copied":
                problem = "being copied to its destinations; delete it afterwards"
                raise InvalidStateError(record.id, problem)
            case "deleted" | "changed":
                return outcome == DELETED
            case _:
                raise InvalidStateError(record.id, f"{outcome}; cancel it before you delete it")

    def find(self, job_id: str) -> Deletion | None:
        """Return a deleted job; None if it was not deleted, or too long ago."""
        fields = cast("dict[str, str]", self._redis.hgetall(record_key(job_id)))
        if fields.get("status") != DELETED:
            return None
        remains: list[str] = json.loads(fields.get("remains", "[]"))
        return Deletion(job_id, fields["tenant"], float(fields["deleted_at"]), tuple(remains))

    def due(self, limit: int) -> list[str]:
        """Return the ids of deleted jobs whose files are to be removed now."""
        now = broker_time(self._redis)
        return cast("list[str]", self._redis.zrangebyscore(DELETIONS, "-inf", now, 0, limit))

    def postpone(self, job_id: str, seconds: float) -> None:
        """Keep others from removing a job's files for this time."""
        with self._redis.pipeline() as pipe:
            pipe.zadd(DELETIONS, {job_id: broker_time(self._redis) + seconds}, xx=True)
            # What the store still has is remembered for as long as it cannot be removed.
            for key in (DELETIONS, record_key(job_id)):
                pipe.expire(key, self._ttl_s)
            pipe.execute()

    def complete(self, job_id: str) -> None:
        """Record that the store has nothing more of a job."""
        with self._redis.pipeline() as pipe:
            pipe.zrem(DELETIONS, job_id)
            pipe.hdel(record_key(job_id), "remains")
            pipe.execute()
