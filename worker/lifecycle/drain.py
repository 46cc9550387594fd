"""Drain: a worker that is asked to stop releases its job after a checkpoint."""

import os
import select
import signal

from celery.worker.control import control_command

from tasks.process.signals import leave_stopping_to_the_parent
from worker.policy import WorkerPolicy


class Drain(WorkerPolicy):
    """Reports to the pool's child that the worker stops, through a pipe made before the fork."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()

    def on_child_start(self) -> None:
        """Stop when the parent asks for it, not at a signal for both."""
        leave_stopping_to_the_parent()

    def on_stopping(self) -> None:
        """Report a shutdown."""
        self.begin()

    def begin(self) -> None:
        """Let the child release its job. Called in the parent."""
        os.write(self._write_fd, b".")

    def requested(self) -> bool:
        """Return whether the worker stops. Called in the child."""
        ready, _, _ = select.select([self._read_fd], [], [], 0)
        return bool(ready)


def shut_down() -> None:
    """Stop this worker as its supervisor would."""
    os.kill(os.getpid(), signal.SIGTERM)


@control_command(name="drain")  # type: ignore[untyped-decorator]
def _on_drain_command(state: object) -> dict[str, str]:
    """Answer ``training-worker drain``."""
    shut_down()
    return {"ok": "draining"}
