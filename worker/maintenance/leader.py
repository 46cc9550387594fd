"""Election of the worker that does the fleet's maintenance."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from redis import Redis, RedisError
from redis.exceptions import LockError

from worker.periodic import PeriodicThread, ThreadWatch

_MAX_INTERVAL_S = 5.0

MaintenanceJob = Callable[[], object]


class LeaderLoop:
    """Runs maintenance jobs in rounds while it holds a lease of the fleet.

    Args:
        client: A connection to the broker.
        timeout: The visibility timeout; a lost leader is replaced after half of it.
        jobs: The jobs of each round, by name. One that fails does not stop the others.
        lease: The key of the lease in Redis.
        watch: Watches the thread and the jobs.
        after_outage: How long the broker must have answered without a gap before the jobs run.
    """

    def __init__(
        self,
        client: Redis,
        timeout: timedelta,
        jobs: Mapping[str, MaintenanceJob],
        *,
        lease: str,
        watch: ThreadWatch,
        after_outage: timedelta = timedelta(0),
    ) -> None:
        self._jobs, self._lease, self._watch = jobs, lease, watch
        self._lock = client.lock(lease, timeout=timeout.total_seconds() / 2, thread_local=False)
        self._interval_s = min(timeout.total_seconds() / 6, _MAX_INTERVAL_S)
        self._calm_s = after_outage.total_seconds()
        # Longer than a round, and too short for a worker's lease to expire within it.
        self._max_gap_s = timeout.total_seconds() / 3
        self._answered_at = self._stable_since = time.monotonic()

    def start(self) -> None:
        """Run rounds in a thread until the process ends."""
        PeriodicThread(self._watch, self._lease, self._interval_s, self.run_once).start()

    def run_once(self) -> bool:
        """Run each job once if this worker holds the lease; return whether it does."""
        if not self._is_leader():
            return False
        if time.monotonic() - self._stable_since >= self._calm_s:
            for name, job in self._jobs.items():
                self._watch.attempt(name, job)
        return True

    def _is_leader(self) -> bool:
        try:
            is_leader = self._reacquire()
        except RedisError:
            self._stable_since = time.monotonic()
            raise
        now = time.monotonic()
        if now - self._answered_at > self._max_gap_s:
            self._stable_since = now
        self._answered_at = now
        return is_leader

    def _reacquire(self) -> bool:
        try:
            return bool(self._lock.reacquire())
        except LockError:  # not held, or expired
            return bool(self._lock.acquire(blocking=False))
