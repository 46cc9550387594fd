"""Worker health: a file that the worker makes once it is ready and touches while its loop turns.

A local file, not the broker, so that a supervisor does not stop workers, and the trainers that run
in them, because the broker is unavailable.
"""

import time
from datetime import timedelta
from pathlib import Path

from worker.errors import UnhealthyWorkerError
from worker.policy import WorkerPolicy

# One round of the thread that touches the file may wait this long for an unavailable broker.
_SLACK = timedelta(seconds=30)


class HealthFile(WorkerPolicy):
    """The health file. A file of an earlier worker is removed at once.

    Args:
        path: The file of ``--ready-file``; None keeps no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.unlink(missing_ok=True)

    def on_ready(self) -> None:
        """Make the file."""
        if self._path is not None:
            self._path.touch()

    def touch(self) -> None:
        """Touch the file, unless the worker is not ready yet. Call it while the main loop turns."""
        if self._path is not None and self._path.exists():
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
