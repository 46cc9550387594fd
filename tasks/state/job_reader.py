"""Reads jobs: their records, their events and the indexes of all jobs."""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from redis import Redis, ResponseError
from redis.client import Pipeline

from tasks.contract import EVENT_FIELD, events_key, position_order, progress_key, record_key
from tasks.errors import UnknownJobError, UnreadableJobError
from tasks.events import Event, Note, parse_event
from tasks.state import keys
from tasks.state.record import (
    DELETED,
    JobRecord,
    JobSummary,
    parse_record,
    parse_summary,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class JobReader:
    """Reads jobs.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def get(self, job_id: str) -> JobRecord:
        """Return the record of a job.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: This version cannot read it.
        """
        return parse_record(job_id, self._fields_of(job_id))

    def now(self) -> float:
        """Return the broker's time, in seconds since 1970."""
        seconds, micros = self._redis.time()
        return seconds + micros / 1e6

    def fields(self, job_id: str) -> dict[str, str]:
        """Return the hash of a job's record.

        Raises:
            UnknownJobError: There is no such job.
        """
        return self._fields_of(job_id)

    def get_all(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return the records of jobs, without unknown and unreadable ones."""
        return _parse_readable(parse_record, self._fields(job_ids))

    def summary(self, job_id: str) -> JobSummary:
        """Return what every version can read of a job.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: Its record is malformed.
        """
        return parse_summary(job_id, self._fields_of(job_id))

    def summaries(self, job_ids: Sequence[str]) -> list[JobSummary]:
        """Return the summaries of jobs, without unknown and unreadable ones."""
        return _parse_readable(parse_summary, self._fields(job_ids))

    def tenant_of(self, job_id: str) -> str | None:
        """Return the tenant of a job of any version, also of a deleted one; None if unknown."""
        return cast("str | None", self._redis.hget(record_key(job_id), "tenant"))

    def existing(self, job_ids: Collection[str]) -> set[str]:
        """Return those of the ids that belong to a job, readable, deleted or not."""
        ids = list(job_ids)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(record_key(job_id))
            return {job_id for job_id, exists in zip(ids, pipe.execute(), strict=True) if exists}

    def newest(self, limit: int) -> list[JobRecord]:
        """Return the jobs submitted last, newest first."""
        return self.get_all(cast("list[str]", self._redis.zrevrange(keys.JOBS, 0, limit - 1)))

    def submitted(
        self, tenant: str | None, after: tuple[float, str] | None, limit: int
    ) -> list[tuple[float, str]]:
        """Return the times at which jobs were submitted, and their ids, newest first.

        Args:
            tenant: The owner of the jobs; None for all tenants.
            after: The last entry of the page before; only older jobs are returned.
            limit: The size of a page.
        """
        index = keys.JOBS if tenant is None else f"{keys.TENANT_JOBS_PREFIX}{tenant}"
        max_score = "+inf" if after is None else repr(after[0])
        # Jobs of the same time are sorted by id, the last one first: a page may begin among them.
        start = 0
        while True:
            page = self._redis.zrevrangebyscore(
                index, max_score, "-inf", start=start, num=limit, withscores=True
            )
            entries = [(score, job_id) for job_id, score in cast("list[tuple[str, float]]", page)]
            older = [entry for entry in entries if after is None or entry < after]
            if older or len(entries) < limit:
                return older
            start += limit

    def events(
        self, job_id: str, *, after: str = "0", block_ms: int | None = None
    ) -> Iterator[tuple[str, Event]]:
        """Yield the job's events after a position, each with its own position.

        Progress that was reported before the call is a sample; all other events are there.

        Args:
            job_id: The job.
            after: A position that this method yielded; ``0`` starts with the oldest event.
            block_ms: How long to wait for the first event; None does not wait.
        """
        streams: dict[Any, Any] = dict.fromkeys(event_streams(job_id), after)
        # Servers may answer a blocked reader from one stream while the other has older entries.
        if block_ms is not None and not self._redis.xread(streams, block=block_ms):
            return
        for position, text in in_order(self._redis.xread(streams)):
            yield position, parse_stored_event(text)

    def newest_progress(self, job_ids: Sequence[str]) -> dict[str, Event]:
        """Return the newest progress of each job that has reported any."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.xrevrange(progress_key(job_id), count=1)
            replies = cast("list[list[tuple[str, dict[str, str]]]]", pipe.execute())
        return {
            job_id: parse_stored_event(reply[0][1][EVENT_FIELD])
            for job_id, reply in zip(job_ids, replies, strict=True)
            if reply
        }

    def _fields_of(self, job_id: str) -> dict[str, str]:
        try:
            return self._fields([job_id])[job_id]
        except KeyError:
            raise UnknownJobError(job_id) from None

    def _fields(self, job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the fields of each job's hash, without unknown jobs."""
        hashes = read_hashes(self._redis, [record_key(job_id) for job_id in job_ids])
        return {
            job_id: fields
            for job_id, fields in zip(job_ids, hashes, strict=True)
            if fields and fields.get("status") != DELETED
        }


def read_hashes(client: Redis, hash_keys: Sequence[str]) -> list[dict[str, str]]:
    """Return hashes; one that is missing, or a key of another type, is empty."""
    with client.pipeline(transaction=False) as pipe:
        for key in hash_keys:
            pipe.hgetall(key)
        return [fields or {} for fields in execute_readable(pipe)]


def execute_readable(pipe: Pipeline) -> list[Any]:
    """Return the replies to a pipeline; None in place of one about a key of the wrong type.

    What one job or tenant has must not hide the others.
    """
    replies = pipe.execute(raise_on_error=False)
    for number, reply in enumerate(replies):
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            logger.warning("skipped a key of the wrong type: %s", reply)
            replies[number] = None
        elif isinstance(reply, Exception):
            raise reply
    return replies


def event_streams(job_id: str) -> tuple[str, str]:
    """Return the keys of the streams that hold a job's events; read both in one command."""
    return events_key(job_id), progress_key(job_id)


def in_order(reply: object) -> list[tuple[str, str]]:
    """Return the positions and texts of the events in a reply to XREAD, in their one order."""
    streams = cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", reply or [])
    found = [(position, fields[EVENT_FIELD]) for _, read in streams for position, fields in read]
    return sorted(found, key=lambda event: position_order(event[0]))


def parse_stored_event(text: str) -> Event:
    """Parse an event of a job's stream; return a note in place of a newer version's event."""
    try:
        return parse_event(text)
    except ValidationError:
        kind = json.loads(text).get("kind")
        return Note(level="info", message=f"an event of a newer version: {kind!r}")


def _parse_readable(
    parse: Callable[[str, Mapping[str, str]], T], hashes: Mapping[str, Mapping[str, str]]
) -> list[T]:
    parsed = []
    for job_id, fields in hashes.items():
        try:
            parsed.append(parse(job_id, fields))
        except UnreadableJobError as error:
            logger.warning("skipped: %s", error, extra={"job": job_id})
    return parsed
