"""Removes what the store has of deleted jobs: now, and again later what was written meanwhile.

The record goes first, in one change (``tasks/state/deletions.py``), with a list of what the store
has. If the store or this process fails, the next call or the maintenance continues. What jobs share
stays: images, normalized datasets, packs of cache entries, and uploads.
"""

import logging
from contextlib import suppress
from datetime import timedelta

from redis import Redis

from tasks.clock import broker_time
from tasks.errors import StoreError
from tasks.state.deletions import Deletion, Deletions
from tasks.state.record import JobRecord
from tasks.store import MANIFEST, Store, archived_record_key, job_prefix, output_prefix

logger = logging.getLogger(__name__)

# A start that was superseded, or a copy of the record, may be written a while after the job's end.
_SECOND_LOOK = timedelta(hours=1)
# Between tries of a store that is unavailable.
_RETRY_S = 60.0
_AT_ONCE = 20


def remains_of(record: JobRecord) -> tuple[str, ...]:
    """Return what the store has of a job, in the order in which it is removed.

    Without its archived record and its manifest, no recovery takes the rest for a whole job.
    """
    published = output_prefix(record.id, record.job.training.base_output_dir)
    return (
        archived_record_key(record.id),
        f"{published}/{MANIFEST}",
        f"{published}/",
        job_prefix(record.id),
    )


def own_keys(store: Store, prefix: str) -> dict[str, int]:
    """Return the keys below a job's prefix with their sizes, without those of other jobs.

    A job's folder of results may be inside that of another job; its manifest shows it.
    """
    sizes = store.sizes(prefix)
    manifests = [key for key in sizes if key.rpartition("/")[2] == MANIFEST]
    others = tuple(folder for key in manifests if (folder := key.removesuffix(MANIFEST)) != prefix)
    return {key: size for key, size in sizes.items() if not key.startswith(others)}


class StoredBytes:
    """Sizes of what the store has of a job.

    Attributes:
        published: The bytes of its published files.
        working: The bytes of its checkpoints, samples and reports.
    """

    def __init__(self, store: Store, record: JobRecord) -> None:
        _, _, published, working = remains_of(record)
        self.published = sum(own_keys(store, published).values())
        self.working = sum(own_keys(store, working).values())


class DeletedFiles:
    """Removes the files of deleted jobs.

    Args:
        store: The store.
        client: A connection to the broker that decodes responses.
        deletions: The deleted jobs.
    """

    def __init__(self, store: Store, client: Redis, deletions: Deletions) -> None:
        self._store, self._redis, self._deletions = store, client, deletions

    def remove_due(self) -> list[str]:
        """Remove the files of jobs that are due; return the ids of those without files now.

        Raises:
            StoreError: The store failed; the rest is tried again later.
        """
        removed = []
        for job_id in self._deletions.due(_AT_ONCE):
            deletion = self._deletions.find(job_id)
            if deletion is None:
                self._deletions.complete(job_id)
                continue
            self.remove(deletion)
            removed.append(job_id)
        return removed

    def remove(self, deletion: Deletion) -> None:
        """Remove a job's files; safe to repeat.

        Raises:
            StoreError: The store failed; the maintenance tries again later.
        """
        self._deletions.postpone(deletion.job_id, _RETRY_S)
        count = 0
        for name in deletion.remains:
            keys = sorted(own_keys(self._store, name)) if name.endswith("/") else [name]
            self._store.delete(keys)
            count += len(keys)
        logger.info("removed up to %d files of job %s", count, deletion.job_id)
        age_s = broker_time(self._redis) - deletion.deleted_at
        rest_s = _SECOND_LOOK.total_seconds() - age_s
        if rest_s > 0:
            self._deletions.postpone(deletion.job_id, rest_s)
        else:
            self._deletions.complete(deletion.job_id)

    def try_remove(self, deletion: Deletion) -> bool:
        """Remove a job's files; return False if the store failed, and the maintenance continues."""
        with suppress(StoreError):
            self.remove(deletion)
            return True
        logger.warning("the files of job %s are removed later", deletion.job_id)
        return False
