"""The events of jobs for many readers: one connection to Redis a job, however many follow it."""

import asyncio
import re
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from typing import cast

import redis
from redis.asyncio import Redis

from console.errors import BadRequestError, TooManyError
from console.views import JobEvent
from tasks.contract import EVENT_FIELD
from tasks.errors import NoBrokerError
from tasks.state.job_store import connect_async, event_in, keys_of

_POSITION = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_BLOCK_MS = 5000
# Events of a job in memory; Redis keeps some 2000.
_MOST_KEPT = 4000
# Each holds a connection to Redis.
_MOST_JOBS = 500

Position = tuple[int, int]


class EventHub:
    """Follows jobs for as long as somebody reads.

    Args:
        broker_url: Where their events are.
    """

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._redis: Redis | None = None
        self._readers: dict[str, _Reader] = {}

    async def follow(
        self, job_id: str, after: str, patience_s: float
    ) -> AsyncGenerator[Sequence[JobEvent], None]:
        """A job's events as they come, those that are there first; ends when the job has.

        Args:
            job_id: A job that there is.
            after: The position of an event: those after it. ``0`` is before all.
            patience_s: An empty batch is given where nothing has happened for so long.

        Raises:
            BadRequestError: ``after`` is no position.
            NoBrokerError: The broker went away.
            TooManyError: Too many jobs are followed.
        """
        position, reader = position_of(after), self._reader(job_id)
        reader.followers += 1
        try:
            while True:
                changed, is_over = reader.changed, reader.is_over
                found = reader.after(position)
                if found:
                    position = position_of(found[-1].id)
                    yield found
                elif is_over:
                    return
                else:
                    try:
                        await asyncio.wait_for(changed.wait(), patience_s)
                    except TimeoutError:
                        yield ()
        finally:
            reader.followers -= 1
            if not reader.followers and self._readers.get(job_id) is reader:
                del self._readers[job_id]
                reader.stop()

    async def close(self) -> None:
        """Follow nothing any more."""
        for reader in self._readers.values():
            reader.stop()
        self._readers.clear()
        if self._redis is not None:
            await self._redis.aclose()

    def _reader(self, job_id: str) -> "_Reader":
        reader = self._readers.get(job_id)
        # A job that was over may have been let go on since.
        if reader is None or reader.has_stopped:
            if len(self._readers) >= _MOST_JOBS:
                raise TooManyError(f"{_MOST_JOBS} jobs are followed already", 60)
            if self._redis is None:
                self._redis = connect_async(self._broker_url)
            reader = self._readers[job_id] = _Reader(self._redis, job_id)
        return reader


class _Reader:
    """Reads one job's events into memory."""

    def __init__(self, client: Redis, job_id: str) -> None:
        self._redis = client
        self._keys = keys_of(job_id)
        self._events: list[JobEvent] = []
        self._positions: list[Position] = []
        self._is_over = False
        self._error: Exception | None = None
        self.followers = 0
        self.changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def has_stopped(self) -> bool:
        """Whether it reads no more."""
        return self._task.done()

    @property
    def is_over(self) -> bool:
        """Whether no more will come.

        Raises:
            NoBrokerError: That is not known, as the broker is away.
        """
        if self._error is not None:
            raise NoBrokerError(f"lost the broker: {self._error}") from self._error
        return self._is_over

    def after(self, position: Position) -> Sequence[JobEvent]:
        """The events after a position."""
        return self._events[bisect_right(self._positions, position) :]

    def stop(self) -> None:
        """Read no more."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._read_to_the_end()
        except (redis.RedisError, OSError, ValueError) as error:
            self._error = error
        finally:
            self._is_over = True
            self._tell()

    async def _read_to_the_end(self) -> None:
        last, block_ms = "0", None
        while True:
            answer = await self._redis.xread({self._keys[1]: last}, block=block_ms, count=1000)
            streams = cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", answer or [])
            for _, entries in streams:
                for position, fields in entries:
                    self._add(position, fields[EVENT_FIELD])
                    last = position
            has_ended = bool(self._events) and self._events[-1].event.kind == "ended"
            if streams:
                self._tell()
                if has_ended:
                    block_ms = None  # nothing should follow
                continue
            if has_ended or not await self._redis.exists(self._keys[0]):
                return
            block_ms = _BLOCK_MS

    def _add(self, position: str, text: str) -> None:
        self._events.append(JobEvent(id=position, event=event_in(text), text=text))
        self._positions.append(position_of(position))
        if len(self._events) > _MOST_KEPT:
            del self._events[: _MOST_KEPT // 2], self._positions[: _MOST_KEPT // 2]

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


def position_of(text: str) -> Position:
    """A position in a job's events, for comparing.

    Raises:
        BadRequestError: The text is none.
    """
    match = _POSITION.fullmatch(text)
    if match is None:
        raise BadRequestError("an event's id is two numbers with a hyphen between")
    return int(match[1]), int(match[2] or 0)
