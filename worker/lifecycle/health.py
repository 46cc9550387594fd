"""A worker's sign of life: the file that it makes once ready, and touches while it is well.

Told by a file of this machine and not by the broker, so that a supervisor does not end workers,
and the trainers that run in them, because the broker is away.
"""

import time
from datetime import timedelta
from pathlib import Path

from worker.errors import UnhealthyWorkerError

# A round of the thread that touches the file may wait so long for a broker that is away.
_SLACK = timedelta(seconds=30)


class ReadyFile:
    """The file; one left behind is removed at once.

    Args:
        path: Where it is; None keeps none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.unlink(missing_ok=True)

    def make(self) -> None:
        """The worker takes messages."""
        if self._path is not None:
            self._path.touch()

    def touch(self) -> None:
        """Its main loop turns."""
        if self._path is not None and self._path.exists():
            self._path.touch()


def check_health(ready_file: Path, timeout: timedelta) -> None:
    """Return where the worker is ready and well.

    Args:
        ready_file: The worker's.
        timeout: The visibility timeout; the file is touched four times in it.

    Raises:
        UnhealthyWorkerError: It is not.
    """
    try:
        age_s = time.time() - ready_file.stat().st_mtime
    except FileNotFoundError:
        raise UnhealthyWorkerError(f"the worker is not ready: there is no {ready_file}") from None
    if age_s > (timeout + _SLACK).total_seconds():
        raise UnhealthyWorkerError(
            f"the worker hangs: it last touched {ready_file} {age_s:.0f} s ago"
        )
