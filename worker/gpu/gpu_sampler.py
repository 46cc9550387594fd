"""GPU sampler: reads statistics in a thread, since a driver that hangs must block no lease."""

import logging
import time
from datetime import timedelta
from functools import partial

from tasks.state.workers import GpuStats
from worker.gpu.nvml import DriverError, read_stats
from worker.periodic import PeriodicThread, ThreadWatch
from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)


class GpuSampler(WorkerPolicy):
    """Reads a GPU's statistics from the worker's start to its end.

    Args:
        uuid: The GPU's; None for a worker without a real one, which has no statistics.
        interval: Time between two readings; one that is twice as old is discarded.
        watch: Watches the thread.
    """

    def __init__(self, uuid: str | None, interval: timedelta, watch: ThreadWatch) -> None:
        self._uuid, self._interval_s, self._watch = uuid, interval.total_seconds(), watch
        self._has_failed = False
        self._newest: tuple[float, GpuStats] | None = None

    def on_ready(self) -> None:
        """Start reading: only now, since the driver does not survive the pool's fork."""
        if self._uuid is not None:
            read = partial(self._read, self._uuid)
            PeriodicThread(self._watch, "gpu-sampler", self._interval_s, read).start()

    def newest(self) -> GpuStats | None:
        """Return the newest statistics; None while the driver reports none."""
        newest = self._newest
        if newest is None or time.monotonic() - newest[0] > 2 * self._interval_s:
            return None
        return newest[1]

    def _read(self, uuid: str) -> None:
        try:
            self._newest = time.monotonic(), read_stats(uuid)
            self._has_failed = False
        except DriverError as error:
            if not self._has_failed:
                logger.warning("GPU %s reports no statistics: %s", uuid, error)
            self._has_failed = True
