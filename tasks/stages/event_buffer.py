"""The events of a start, kept in order while the broker is unavailable.

A trainer needs no broker: it trains on and saves checkpoints to the store, and the job's record
gets them when the broker is back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

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
# A few hundred kilobytes. Far more than a trainer reports in a day besides its progress.
_MAX_EVENTS = 2000


@dataclass
class _Batch:
    """What is written in one change, under an id by which a lost reply makes no second change."""

    events: list[Event] = field(default_factory=list)
    artifacts: JobArtifacts = NO_ARTIFACTS
    counts: dict[str, int] = field(default_factory=dict)
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    change_id: str = field(default_factory=lambda: uuid4().hex)

    def append(self, event: Event) -> None:
        """Add an event. The last one of consecutive progress is enough, and so is a part of all."""
        if self.events and isinstance(event, Progress) and isinstance(self.events[-1], Progress):
            self.events.pop()
        self.events.append(event)
        if len(self.events) > _MAX_EVENTS:
            progress = (i for i, old in enumerate(self.events) if isinstance(old, Progress))
            del self.events[next(progress, 0)]


class EventBuffer:
    """Writes events to the job's record, now or when the broker is back.

    Args:
        state: The jobs, over a connection that gives up early.
        job_id: The job.
        token: The start's.
    """

    def __init__(self, state: JobStore, job_id: str, token: FencingToken) -> None:
        self._state, self._job_id, self._token = state, job_id, token
        self._kept = _Batch()
        self._sent: _Batch | None = None
        """What was sent, and may be written: it is sent again as it was."""
        self._retry_at = 0.0

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
        self._kept.append(event)
        self._kept.artifacts = self._kept.artifacts.updated(artifacts)
        if then is not None:
            self._kept.callbacks.append(then)
        self.if_connected(self.flush)

    def count(self, counts: Counts) -> None:
        """Add counts, to be written with the next events."""
        for name, by in counts.items():
            self._kept.counts[name] = self._kept.counts.get(name, 0) + by

    def take_counts(self) -> Counts:
        """Return the unwritten counts, for the caller to write."""
        counts, self._kept.counts = self._kept.counts, {}
        return counts

    def requested_status(self) -> JobStatus | None:
        """Write the kept events, and return the job's status; None while the broker is unavailable.

        Raises:
            SupersededError: A newer start has taken over.
        """
        self.if_connected(self.flush)
        return self.if_connected(lambda: self._state.requested_state(self._job_id, self._token))

    def flush(self) -> None:
        """Write the kept events now.

        Raises:
            SupersededError: A newer start has taken over.
            redis.RedisError: The broker is unavailable; everything is kept.
        """
        while self._sent is not None or self._kept.events:
            if self._sent is None:
                self._sent, self._kept = self._kept, _Batch()
            batch = self._sent
            self._state.write(
                self._job_id,
                self._token,
                batch.events,
                batch.artifacts,
                batch.counts,
                batch.change_id,
            )
            self._sent = None
            for callback in batch.callbacks:
                callback()

    def if_connected(self, request: Callable[[], T]) -> T | None:
        """Make a request, unless the broker is unavailable or was so a moment ago."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            return request()
        except (redis.ConnectionError, redis.TimeoutError):
            self._retry_at = time.monotonic() + _RETRY_AFTER_S
            return None
