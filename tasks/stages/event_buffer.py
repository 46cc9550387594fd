"""What a start of a stage has to tell, kept in order while the broker is away.

A trainer needs no broker to go on: it trains and saves checkpoints to the store, and the record
hears of them when the broker is back.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import redis

from tasks.events import Event, Progress
from tasks.metrics import Counts
from tasks.state.job_store import JobStore
from tasks.state.record import JobStatus

T = TypeVar("T")

# A broker that is away costs a connection's time-out at each try.
_PAUSE_S = 2.0


class EventBuffer:
    """Tells the job's record and its readers, now or when the broker is back.

    Args:
        state: The jobs; its connection should give up early.
        job_id: The job.
        attempt: The start's number.
    """

    def __init__(self, state: JobStore, job_id: str, attempt: int) -> None:
        self._state, self._job_id, self._attempt = state, job_id, attempt
        self._events: list[Event] = []
        self._refs: dict[str, str] = {}
        self._then: list[Callable[[], None]] = []
        self._counts: dict[str, int] = {}
        self._try_at = 0.0

    @property
    def away(self) -> bool:
        """Whether the broker was away a moment ago."""
        return time.monotonic() < self._try_at

    def put(
        self,
        event: Event,
        refs: dict[str, str] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Tell something.

        Args:
            event: For the job's readers.
            refs: For the record; a later value of the same name replaces one not yet told.
            then: Called once it is told.

        Raises:
            SupersededError: The start's attempt is not the newest.
        """
        if self._events and isinstance(event, Progress) and isinstance(self._events[-1], Progress):
            self._events.pop()
        self._events.append(event)
        self._refs |= refs or {}
        if then is not None:
            self._then.append(then)
        self._try(self.flush)

    def count(self, counts: Counts) -> None:
        """Count something with whatever is told next."""
        for field, by in counts.items():
            self._counts[field] = self._counts.get(field, 0) + by

    def take_counts(self) -> Counts:
        """What is still to be counted, for the caller to tell."""
        counts, self._counts = self._counts, {}
        return counts

    def ask(self) -> JobStatus | None:
        """Tell what waits, and ask for the job's status; None where the broker is away.

        Raises:
            SupersededError: The start's attempt is not the newest.
        """
        self._try(self.flush)
        return self._try(lambda: self._state.requested_state(self._job_id, self._attempt))

    def flush(self) -> None:
        """Tell what waits, now.

        Raises:
            SupersededError: The start's attempt is not the newest.
            redis.RedisError: The broker is away; everything waits on.
        """
        if self._events:
            self._state.write(self._job_id, self._attempt, self._events, self._refs, self._counts)
            self._counts = {}
        done, self._then = self._then, []
        self._events, self._refs = [], {}
        for callback in done:
            callback()

    def _try(self, call: Callable[[], T]) -> T | None:
        if self.away:
            return None
        try:
            return call()
        except (redis.ConnectionError, redis.TimeoutError):
            self._try_at = time.monotonic() + _PAUSE_S
            return None
