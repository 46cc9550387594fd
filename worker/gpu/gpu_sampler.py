"""A GPU's figures, read over and over in a thread: a driver that hangs must hold up no lease."""

import logging
import threading
import time
from datetime import timedelta

from tasks.state.workers import GpuStats
from worker.gpu.nvml import DriverError, figures

logger = logging.getLogger(__name__)


class GpuSampler:
    """Reads a GPU's figures until the process ends.

    Args:
        uuid: The GPU's.
        every: How often; what is twice as old counts no more.
    """

    def __init__(self, uuid: str, every: timedelta) -> None:
        self._uuid, self._every_s = uuid, every.total_seconds()
        self._newest: tuple[float, GpuStats] | None = None

    def start(self) -> None:
        """Read from now on; call it in the process that asks, after its forks."""
        threading.Thread(target=self._read_for_ever, name="gpu-meter", daemon=True).start()

    def newest(self) -> GpuStats | None:
        """The newest figures; None where the driver does not tell any."""
        newest = self._newest
        if newest is None or time.monotonic() - newest[0] > 2 * self._every_s:
            return None
        return newest[1]

    def _read_for_ever(self) -> None:
        failed = False
        while True:
            try:
                self._newest = time.monotonic(), figures(self._uuid)
                failed = False
            except DriverError as error:
                if not failed:
                    logger.warning("GPU %s tells no figures: %s", self._uuid, error)
                failed = True
            time.sleep(self._every_s)
