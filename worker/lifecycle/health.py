"""Worker health: a file that the worker makes once it is ready and touches while its loop turns.

A local file, not the broker, so that a supervisor does not stop workers, and the trainers that run
in them, because the broker is unavailable.
"""

import threading
import time
from datetime import timedelta
from pathlib import Path

from worker.errors import UnhealthyWorkerError
from worker.periodic import PeriodicThread, ThreadWatch
from worker.policy import WorkerPolicy

# The file is at most two rounds of two threads old, and a round of the renewal, which reports the
# loop, may wait this long for an unavailable broker.
_SLACK = timedelta(seconds=30)


class HealthFile(WorkerPolicy):
    """The health file. A file of an earlier worker is removed at once.

    A thread of its own touches it: a disk that fails or hangs makes a worker unhealthy, and takes
    no lease from it.

    Args:
        path: The file of ``--ready-file``; None keeps no file.
        interval: Time between two touches.
        watch: Watches the thread.
    """

    def __init__(self, path: Path | None, interval: timedelta, watch: ThreadWatch) -> None:
        self._path, self._is_alive = path, threading.Event()
        self._thread = PeriodicThread(watch, "health", interval.total_seconds(), self._touch)
        if path is not None:
            path.unlink(missing_ok=True)

    def on_ready(self) -> None:
        """Make the file."""
        self.report_alive()
        if self._path is not None:
            self._thread.start()

    def report_alive(self) -> None:
        """Report that the main loop turns."""
        self._is_alive.set()

    def _touch(self) -> None:
        if self._path is not None and self._is_alive.is_set():
            self._is_alive.clear()
            self._path.touch()


def check_health(path: Path, timeout: timedelta) -> None:
    """Check that a worker is ready and its main loop turns.

    Args:
        path: The worker's health file.
        timeout: The visibility timeout; the worker touches the file four times in it.

    Raises:
        UnhealthyWorkerError: It is not ready, or its main loop hangs.
    """
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        raise UnhealthyWorkerError(f"the worker is not ready: {path} does not exist") from None
    if age_s > (timeout + _SLACK).total_seconds():
        raise UnhealthyWorkerError(f"the worker hangs: it last touched {path} {age_s:.0f} s ago")
