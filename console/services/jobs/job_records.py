"""Records of jobs, changed by their owners: renamed, annotated, and deleted with their files."""

import logging

from redis import Redis

from console.services.jobs.jobs import Jobs, ids_of
from console.services.threads import in_thread
from console.views import JobView, View
from tasks.access.api_keys import Caller
from tasks.archive import archive_record
from tasks.client import Client
from tasks.deletion import DeletedFiles, StoredBytes
from tasks.errors import JobError, UnknownJobError
from tasks.jobs.edit import JobEdit
from tasks.state.deletions import Deletion
from tasks.state.record import JobRecord
from tasks.store import Store

logger = logging.getLogger(__name__)


class JobStorageView(View):
    """What the store has of a job: its deletion frees it."""

    published_bytes: int
    """Size of the published files."""
    working_bytes: int
    """Size of the checkpoints, samples and reports."""

    @property
    def total_bytes(self) -> int:
        """Size of all of it."""
        return self.published_bytes + self.working_bytes


class JobRecords:
    """Changes records of jobs; a caller changes those of the jobs that it sees.

    Args:
        client: The fleet's client.
        redis: A connection to the broker that decodes responses.
        store: The store that holds the jobs' files.
        jobs: The jobs service.
    """

    def __init__(self, client: Client, redis: Redis, store: Store, jobs: Jobs) -> None:
        self._client, self._store, self._jobs = client, store, jobs
        self._files = DeletedFiles(store, redis, client.deletions)

    @in_thread
    def edit(self, caller: Caller, job_id: str, changes: JobEdit) -> JobView:
        """Change what people call a job.

        Raises:
            UnknownJobError: The caller sees no job of this id.
        """
        known = self._jobs.record(caller, job_id)
        self._client.edit(known.id, changes, caller.actor)
        record = self._client.state.get(known.id)
        self._archive(record)
        return self._jobs.view(record, caller)

    @in_thread
    def storage(self, caller: Caller, job_id: str) -> JobStorageView:
        """Return how much the store has of a job.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            StoreError: The store is unavailable.
        """
        stored = StoredBytes(self._store, self._jobs.record(caller, job_id))
        return JobStorageView(published_bytes=stored.published, working_bytes=stored.working)

    @in_thread
    def delete(self, caller: Caller, job_id: str) -> bool:
        """Delete a job with its results; return False if files remain, which are removed later.

        A job that was deleted before stays so.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            InvalidStateError: The job has not ended, or its results are being copied.
        """
        try:
            record = self._jobs.record(caller, job_id)
        except UnknownJobError:
            deletion = self._deleted_before(caller, job_id)
            if deletion is None:
                raise
        else:
            deletion = self._client.delete(record.id, caller.actor)
        return not deletion.remains or self._files.try_remove(deletion)

    @in_thread
    def remove_due(self) -> list[str]:
        """Remove the files of deleted jobs that remain; see ``DeletedFiles.remove_due``."""
        return self._files.remove_due()

    def _deleted_before(self, caller: Caller, job_id: str) -> Deletion | None:
        """Return the deletion of a job that the caller saw; None if it was not deleted."""
        found = map(self._client.deletions.find, ids_of(caller, job_id))
        return next((it for it in found if it is not None and caller.sees(it.tenant)), None)

    def _archive(self, record: JobRecord) -> None:
        """Take a change of a job with results to its archived record."""
        if not record.status.ended or record.artifacts.manifest is None:
            return
        try:
            archive_record(self._store, self._client.state, record.id)
        except JobError:
            logger.warning("job %s is edited, but its archived record is not", record.id)
