"""Scratch folders of starts that were killed: no process is left to remove them."""

import logging
import re
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import cast

from redis import Redis

from tasks.contract import record_key
from tasks.state.fencing_token import FencingToken
from worker.periodic import PeriodicThread, ThreadWatch
from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)

# A killed start stays its job's newest until the message is redelivered.
_EVERY = timedelta(minutes=10)
# Another fleet may use this folder, and know the job.
_UNKNOWN_AFTER = timedelta(days=1)
_NAME = re.compile(r"(?P<job_id>[A-Za-z0-9][\w.-]*)-(?P<start_id>\d+-[0-9a-f]{8})")


class ScratchCleanup(WorkerPolicy):
    """Removes folders of this machine's dead starts from the worker's start on.

    Args:
        folder: ``TRAINING_SCRATCH_DIR``.
        client: A connection to the broker that decodes responses.
        watch: Watches the thread.
    """

    def __init__(self, folder: Path, client: Redis, watch: ThreadWatch) -> None:
        self._folder, self._redis = folder, client
        self._thread = PeriodicThread(watch, "scratch", _EVERY.total_seconds(), self.remove_dead)

    def on_ready(self) -> None:
        """Start removing."""
        self._thread.start()

    def remove_dead(self) -> list[str]:
        """Remove the folders of all starts but the newest of each unfinished job.

        Returns:
            The names of the removed folders.
        """
        if not self._folder.is_dir():
            return []
        # Listed before the records are read: a newer folder belongs to a start not yet read.
        named = [(path, _NAME.fullmatch(path.name)) for path in self._folder.iterdir()]
        removed = []
        for path, name in named:
            is_own = name is not None and path.is_dir() and not path.is_symlink()
            if name is not None and is_own and self._is_dead(path, **name.groupdict()):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
        if removed:
            logger.info("removed scratch folders of dead starts: %s", ", ".join(removed))
        return removed

    def _is_dead(self, path: Path, job_id: str, start_id: str) -> bool:
        fields = ("status", "stage_state", "attempt", "delivery_tag")
        reply = self._redis.hmget(record_key(job_id), fields)
        status, stage_state, attempt, delivery_tag = cast("list[str | None]", reply)
        if status is None:
            return time.time() - path.stat().st_mtime > _UNKNOWN_AFTER.total_seconds()
        newest = FencingToken(int(attempt or 0), delivery_tag or "")
        return stage_state != "running" or newest.start_id != start_id
