"""The events of a start, kept in order while the broker is unavailable.

A trainer needs no broker: it trains on and saves checkpoints to the store, and the job's record
gets them when the broker is back.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import redis

from tasks.events import Event, Progress
from tasks.metrics import Counts
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore
from tasks.state.record import JobStatus

T = TypeVar("T")

# Each attempt on an unavailable broker costs a connection's timeout.
_RETRY_AFTER_S = 2.0


class EventBuffer:
    """Writes events to the job's record, now or when the broker is back.

    Args:
        state: The jobs, over a connection that gives up early.
        job_id: The job.
        token: The start's.
    """

    def __init__(self, state: JobStore, job_id: str, token: FencingToken) -> None:
        self._state, self._job_id, self._token = state, job_id, token
        self._events: list[Event] = []
        self._artifacts = NO_ARTIFACTS
        self._callbacks: list[Callable[[], None]] = []
        self._counts: dict[str, int] = {}
        self._retry_at = 0.0

    @property
    def is_disconnected(self) -> bool:
        """Whether the broker was unavailable a moment ago."""
        return time.monotonic() < self._retry_at

    def put(
        self,
        event: Event,
        artifacts: JobArtifacts = NO_ARTIFACTS,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Write an event, or keep it until the broker is back.

        Args:
            event: For the job's readers.
            artifacts: For the record; a later value of a field replaces an unwritten one.
            then: Called once the event is written.

        Raises:
            SupersededError: A newer start has taken over.
        """
        if self._events and isinstance(event, Progress) and isinstance(self._events[-1], Progress):
            self._events.pop()
        self._events.append(event)
        self._artifacts = self._artifacts.updated(artifacts)
        if then is not None:
            self._callbacks.append(then)
        self._if_connected(self.flush)

    def count(self, counts: Counts) -> None:
        """Add counts, to be written with the next events."""
        for field, by in counts.items():
            self._counts[field] = self._counts.get(field, 0) + by

    def take_counts(self) -> Counts:
        """Return the unwritten counts, for the caller to write."""
        counts, self._counts = self._counts, {}
        return counts

    def requested_status(self) -> JobStatus | None:
        """Write the kept events, and return the job's status; None while the broker is unavailable.

        Raises:
            SupersededError: A newer start has taken over.
        """
        self._if_connected(self.flush)
        return self._if_connected(lambda: self._state.requested_state(self._job_id, self._token))

    def flush(self) -> None:
        """Write the kept events now.

        Raises:
            SupersededError: A newer start has taken over.
            redis.RedisError: The broker is unavailable; everything is kept.
        """
        if self._events:
            self._state.write(
                self._job_id, self._token, self._events, self._artifacts, self._counts
            )
            self._counts = {}
        callbacks, self._callbacks = self._callbacks, []
        self._events, self._artifacts = [], NO_ARTIFACTS
        for callback in callbacks:
            callback()

    def _if_connected(self, request: Callable[[], T]) -> T | None:
        if self.is_disconnected:
            return None
        try:
            return request()
        except (redis.ConnectionError, redis.TimeoutError):
            self._retry_at = time.monotonic() + _RETRY_AFTER_S
            return None
