"""Records of jobs that have ended: changed and restored without a stage."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta

from redis import Redis

from tasks.contract import events_key, record_key
from tasks.errors import InvalidStateError
from tasks.events import PublishedCopy
from tasks.state import scripts
from tasks.state.artifacts import JobArtifacts
from tasks.state.record import JobSummary


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
