"""Records of jobs that have ended: changed and restored without a stage."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from redis import Redis

from tasks.contract import events_key, record_key
from tasks.errors import InvalidStateError
from tasks.events import PublishedCopy
from tasks.state import keys, scripts
from tasks.state.artifacts import JobArtifacts
from tasks.state.record import JobSummary

# A copy that was killed holds the results for no longer.
_HOLD_S = 600


class EndedJobs:
    """Changes records of jobs that have ended.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its end.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis = client
        self._ttl_s = int(ttl.total_seconds())

    def record_copies(self, job: JobSummary, copies: tuple[PublishedCopy, ...]) -> None:
        """Record what became of the copies of a job's results.

        Raises:
            InvalidStateError: The job has not ended, or its record has expired.
        """
        listed = [copy.model_dump(mode="json") for copy in copies]
        fields = JobArtifacts(copies=copies).hash_fields()
        if job.result is not None:
            fields["result"] = json.dumps({**job.result, "copies": listed})
        is_recorded = scripts.record_copies(
            self._redis,
            job_key=record_key(job.id),
            events_key=events_key(job.id),
            ttl_s=self._ttl_s,
            fields=fields,
        )
        if not is_recorded:
            raise InvalidStateError(job.id, "not ended, so its copies are not recorded")

    def has_unstored_result(self, job_id: str) -> bool:
        """Whether those who wait for a job's Celery result have not got it yet."""
        return self._redis.zscore(keys.UNSTORED_RESULTS, job_id) is not None

    @contextmanager
    def holding_results(self, job_id: str) -> Iterator[Callable[[], None]]:
        """Keep a job from being deleted while its results are copied.

        Yields:
            What a long copy calls again and again to hold them longer.

        Raises:
            InvalidStateError: The job has not ended, or was deleted.
        """
        held_s = float("-inf")

        def hold() -> None:
            nonlocal held_s
            if time.monotonic() - held_s < _HOLD_S / 4:
                return
            held_s = time.monotonic()
            if not self._hold(job_id, _HOLD_S):
                raise InvalidStateError(job_id, "not ended, or was deleted")

        hold()
        try:
            yield hold
        finally:
            self._hold(job_id, 0)

    def _hold(self, job_id: str, seconds: int) -> bool:
        is_held = scripts.hold_results(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            seconds=seconds,
        )
        return bool(is_held)

    def restore(
        self, job_id: str, fields: Mapping[str, str], events: Sequence[tuple[str, str]], rest_s: int
    ) -> bool:
        """Record a job whose record was lost; return whether there was none.

        Args:
            job_id: The job.
            fields: The hash of its record.
            events: Its events as JSON, each with its position before, the last one being its end.
            rest_s: Seconds that it is kept for.
        """
        is_restored = scripts.restore_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            rest_s=rest_s,
            fields=fields,
            positions=[position for position, _ in events],
            events=[event for _, event in events],
        )
        return bool(is_restored)
