"""Child processes that never outlive their parent.

``spawn`` starts all our child processes: broker, workers, Flower, trainers. It starts this module
as a launcher. On Linux the launcher asks the kernel to be killed at its parent's death and becomes
the command; elsewhere it stays, watches its parent and ends the command with it.

The kernel acts when the *thread* that started the child ends, so call ``spawn`` from a thread that
lives as long as the process, such as the main thread.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from tasks.process.parent_death import end_with_parent

_WATCH_EVERY_S = 0.2


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    pass_fds: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a command in a new process group that ends when this process ends.

    Args:
        argv: The command.
        env: Its environment; None is ours.
        stdin: As in ``subprocess.Popen``, but empty by default.
        stdout: As in ``subprocess.Popen``.
        stderr: As in ``subprocess.Popen``.
        pass_fds: Descriptors it inherits.
    """
    launcher = [sys.executable, "-P", "-m", "worker.supervision.process"]
    return subprocess.Popen(
        [*launcher, str(os.getpid()), *argv],
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def stop(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Terminate a child, and kill its process group after ``grace_s`` seconds."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    kill_group(process)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a child and all processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _launch(parent: int, argv: list[str]) -> int:
    if sys.platform != "linux":
        return _watch(parent, argv)
    end_with_parent()
    if os.getppid() == parent:  # otherwise the parent died before the request
        os.execvp(argv[0], argv)
    return 1


def _watch(parent: int, argv: list[str]) -> int:
    child = subprocess.Popen(argv, close_fds=False)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        if os.getppid() != parent:
            child.kill()
        time.sleep(_WATCH_EVERY_S)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(_launch(int(sys.argv[1]), sys.argv[2:]))
