"""Events of jobs for many readers: one connection to Redis a job, however many follow it."""

import asyncio
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import redis
from redis.asyncio import Redis

from console.errors import BadRequestError
from console.services.jobs.jobs import Jobs
from console.services.shares import Share
from console.services.threads import in_thread
from console.views import JobEvent
from tasks.access.api_keys import Caller
from tasks.contract import record_key
from tasks.errors import NoBrokerError
from tasks.state.connection import connect_async
from tasks.state.job_reader import event_streams, in_order, parse_stored_event
from tasks.state.record import DELETED, JobRecord

_POSITION = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_BLOCK_MS = 5000
# Progress events of a job in memory: more than Redis keeps of one. It keeps few others.
_MAX_PROGRESS = 4000
# Of all accounts. A stream holds a socket, and its job's events and a connection to Redis.
_MAX_STREAMS = 500

Position = tuple[int, int]


class EventHub:
    """Follows jobs while readers need their events.

    Args:
        broker_url: The broker that holds the events.
        jobs: The jobs service, which decides whose events a caller sees.
    """

    def __init__(self, broker_url: str, jobs: Jobs) -> None:
        self._broker_url, self._jobs = broker_url, jobs
        self._redis: Redis | None = None
        self._readers: dict[str, _Reader] = {}
        self._streams = Share("event streams", _MAX_STREAMS)

    @asynccontextmanager
    async def follow(
        self, caller: Caller, job_id: str, after: str = "0"
    ) -> AsyncIterator["EventStream"]:
        """Open a stream of a job's events for the time of the context.

        Args:
            caller: The caller.
            job_id: The job.
            after: Id of an event: the stream has those after it. ``0`` is before the first.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            BadRequestError: ``after`` is malformed.
            TooManyError: The account has used up its share of streams.
            NoBrokerError: The broker is unavailable.
        """
        position = position_of(after)
        record = await in_thread(self._jobs.record)(caller, job_id)
        with self._streams.hold(caller.account):
            reader = self._reader(record.id)
            reader.followers += 1
            try:
                await reader.wait_for_past_events()
                yield EventStream(record, reader, position)
            finally:
                reader.followers -= 1
                if not reader.followers and self._readers.get(record.id) is reader:
                    del self._readers[record.id]
                    reader.stop()

    async def close(self) -> None:
        """Stop all readers."""
        for reader in self._readers.values():
            reader.stop()
        self._readers.clear()
        if self._redis is not None:
            await self._redis.aclose()

    def _reader(self, job_id: str) -> "_Reader":
        reader = self._readers.get(job_id)
        # A job that had ended may have been replayed since.
        if reader is None or reader.has_stopped:
            if self._redis is None:
                self._redis = connect_async(self._broker_url)
                # A hundred by default. Each followed job holds one while it waits.
                self._redis.connection_pool.max_connections = _MAX_STREAMS * 2
            reader = self._readers[job_id] = _Reader(self._redis, job_id)
        return reader


class EventStream:
    """A job's events in batches, past ones first, until the job has ended.

    Attributes:
        record: The job.
    """

    def __init__(self, record: JobRecord, reader: "_Reader", position: Position) -> None:
        self.record, self._reader, self._position = record, reader, position

    async def wait(self) -> bool:
        """Wait for events; return False when no more will come.

        Raises:
            NoBrokerError: The broker became unavailable.
        """
        while not self._reader.after(self._position):
            changed = self._reader.changed
            if self._reader.has_ended:
                return False
            await changed.wait()
        return True

    async def __aiter__(self) -> AsyncIterator[Sequence[JobEvent]]:
        """Yield the batches.

        Raises:
            NoBrokerError: The broker became unavailable.
        """
        while await self.wait():
            batch = self._reader.after(self._position)
            self._position = position_of(batch[-1].id)
            yield batch


class _Reader:
    """Reads one job's events into memory."""

    def __init__(self, client: Redis, job_id: str) -> None:
        self._redis = client
        self._record_key, self._streams = record_key(job_id), event_streams(job_id)
        self._events: list[JobEvent] = []
        self._positions: list[Position] = []
        self._progress = 0
        """The number of progress events among them."""
        self._has_ended = False
        self._error: Exception | None = None
        self.followers = 0
        self.changed = asyncio.Event()
        self._has_begun = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def has_stopped(self) -> bool:
        """Whether the reader has stopped."""
        return self._task.done()

    @property
    def has_ended(self) -> bool:
        """Whether no more events will come.

        Raises:
            NoBrokerError: The broker is unavailable.
        """
        if self._error is not None:
            raise NoBrokerError(
                f"lost the connection to the broker: {self._error}"
            ) from self._error
        return self._has_ended

    async def wait_for_past_events(self) -> None:
        """Wait until the events were read that the broker has.

        Raises:
            NoBrokerError: The broker is unavailable.
        """
        await self._has_begun.wait()
        if self._error is not None:
            raise NoBrokerError(f"cannot read events: {self._error}") from self._error

    def after(self, position: Position) -> Sequence[JobEvent]:
        """Return the events after a position."""
        return self._events[bisect_right(self._positions, position) :]

    def stop(self) -> None:
        """Stop reading."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._read_until_ended()
        except (redis.RedisError, OSError, ValueError) as error:
            self._error = error
        finally:
            self._has_ended = True
            self._has_begun.set()
            self._notify()

    async def _read_until_ended(self) -> None:
        last = "0"
        while True:
            events = in_order(await self._redis.xread(dict.fromkeys(self._streams, last)))
            for position, text in events:
                self._add(position, text)
                last = position
            if events:
                self._notify()
                continue
            self._has_begun.set()
            has_ended = bool(self._events) and self._events[-1].event.kind == "ended"
            if has_ended or not await self._has_record():
                return
            # Only to wait: servers may answer from one stream while the other has older entries.
            await self._redis.xread(dict.fromkeys(self._streams, last), block=_BLOCK_MS, count=1)

    async def _has_record(self) -> bool:
        # A deleted job leaves a tombstone, which gets no more events.
        status = await cast("Awaitable[str | None]", self._redis.hget(self._record_key, "status"))
        return status not in (None, DELETED)

    def _add(self, position: str, text: str) -> None:
        event = JobEvent(id=position, event=parse_stored_event(text), text=text)
        self._events.append(event)
        self._positions.append(position_of(position))
        self._progress += event.event.kind == "progress"
        if self._progress > _MAX_PROGRESS:
            self._thin_out_progress()

    def _thin_out_progress(self) -> None:
        """Drop every second progress event, so that the whole curve stays."""
        is_odd, kept = False, []
        for event in self._events:
            is_progress = event.event.kind == "progress"
            is_odd ^= is_progress
            if is_odd or not is_progress:
                kept.append(event)
        self._events, self._progress = kept, (self._progress + 1) // 2
        self._positions = [position_of(event.id) for event in kept]

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


def position_of(text: str) -> Position:
    """Return the position of an event id, for comparison.

    Raises:
        BadRequestError: The event id is malformed.
    """
    match = _POSITION.fullmatch(text)
    if match is None:
        raise BadRequestError(
            "malformed event id; it is two numbers joined by a hyphen", "Last-Event-ID"
        )
    return int(match[1]), int(match[2] or 0)
