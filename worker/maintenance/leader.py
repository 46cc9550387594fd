"""What one worker of the fleet at a time sees to: lost messages, retries that are due, webhooks."""

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

_LONGEST_PAUSE_S = 5.0

MaintenanceJob = Callable[[], object]


class LeaderLoop:
    """Does its duties, in turns, for as long as it holds the fleet's lease on them.

    Args:
        client: A connection to the broker.
        timeout: The visibility timeout; a worker that is lost is replaced after half of it.
        duties: What is done in each turn.
        lease: The key of the lease in Redis.
        restore: A duty that takes messages from workers that do not renew them. It waits for
            half of ``timeout`` after a start or an outage, in which live workers renew theirs.
    """

    def __init__(
        self,
        client: "redis.Redis",
        timeout: timedelta,
        duties: Sequence[MaintenanceJob],
        *,
        lease: str = MAINTENANCE_LEASE,
        restore: MaintenanceJob = lambda: None,
    ) -> None:
        self._duties, self._restore = duties, restore
        self._hold_back_s = timeout.total_seconds() / 2
        self._pause_s = min(timeout.total_seconds() / 6, _LONGEST_PAUSE_S)
        self._lock = client.lock(lease, timeout=self._hold_back_s, thread_local=False)
        self._steady_since = time.monotonic()

    def start(self) -> None:
        """Take turns in a thread until the process ends."""
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    def turn(self) -> bool:
        """Do every duty once, where this worker has the lease; False where another has it."""
        try:
            if not self._is_ours():
                return False
        except redis.RedisError as error:
            self._failed(error)
            return False
        for duty in self._duties:
            self._do(duty)
        if time.monotonic() - self._steady_since >= self._hold_back_s:
            self._do(self._restore)
        return True

    def _run(self) -> None:
        while True:
            self.turn()
            time.sleep(self._pause_s)

    def _is_ours(self) -> bool:
        try:
            return bool(self._lock.reacquire())
        except LockError:  # not yet, or not any more
            return bool(self._lock.acquire(blocking=False))

    def _do(self, duty: MaintenanceJob) -> None:
        try:
            duty()
        except (redis.RedisError, OperationalError) as error:
            self._failed(error)
        except Exception:
            logger.exception("upkeep failed")

    def _failed(self, error: Exception) -> None:
        self._steady_since = time.monotonic()
        logger.warning("upkeep waits: %s", error)
