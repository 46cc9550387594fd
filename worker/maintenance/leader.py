"""Election of the worker that does the fleet's maintenance."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import LockError

from tasks.state.keys import MAINTENANCE_LEASE

logger = logging.getLogger(__name__)

_MAX_INTERVAL_S = 5.0

MaintenanceJob = Callable[[], object]


class LeaderLoop:
    """Runs maintenance jobs in rounds while it holds the fleet's lease on them.

    Args:
        client: A connection to the broker.
        timeout: The visibility timeout; a lost leader is replaced after half of it.
        jobs: The jobs of each round.
        lease: The key of the lease in Redis.
        redeliver: A job that takes messages from workers that do not renew them. It waits for half
            of ``timeout`` after the start and after an outage, while live workers renew theirs.
    """

    def __init__(
        self,
        client: "redis.Redis",
        timeout: timedelta,
        jobs: Sequence[MaintenanceJob],
        *,
        lease: str = MAINTENANCE_LEASE,
        redeliver: MaintenanceJob = lambda: None,
    ) -> None:
        self._jobs, self._redeliver = jobs, redeliver
        self._grace_s = timeout.total_seconds() / 2
        self._interval_s = min(timeout.total_seconds() / 6, _MAX_INTERVAL_S)
        self._lock = client.lock(lease, timeout=self._grace_s, thread_local=False)
        self._stable_since = time.monotonic()

    def start(self) -> None:
        """Run rounds in a thread until the process ends."""
        threading.Thread(target=self._run, name="maintenance", daemon=True).start()

    def run_once(self) -> bool:
        """Run each job once if this worker holds the lease; return whether it does."""
        try:
            if not self._is_leader():
                return False
        except redis.RedisError as error:
            self._report(error)
            return False
        for job in self._jobs:
            self._run_job(job)
        if time.monotonic() - self._stable_since >= self._grace_s:
            self._run_job(self._redeliver)
        return True

    def _run(self) -> None:
        while True:
            self.run_once()
            time.sleep(self._interval_s)

    def _is_leader(self) -> bool:
        try:
            return bool(self._lock.reacquire())
        except LockError:  # not held, or expired
            return bool(self._lock.acquire(blocking=False))

    def _run_job(self, job: MaintenanceJob) -> None:
        try:
            job()
        except (redis.RedisError, OperationalError) as error:
            self._report(error)
        except Exception:
            logger.exception("a maintenance job failed")

    def _report(self, error: Exception) -> None:
        self._stable_since = time.monotonic()
        logger.warning("maintenance waits for the broker: %s", error)
