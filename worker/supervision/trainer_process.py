"""A trainer process and its channels: request lines in, events out, standard error kept.

Knows processes and pipes; must not know what the lines mean.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import tempfile
from collections import deque

import psutil

from tasks.stages.trainer_protocol import TrainerRequest
from worker.supervision.process import kill_group, spawn

logger = logging.getLogger(__name__)

_STDERR_LINES = 30


class TrainerProcess:
    """A trainer process with its channels.

    Args:
        command: What to start; it gets ``--events-fd N`` too.
        env: Its environment.
        base_model: What it is going to load.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], base_model: tuple[str, ...]
    ) -> None:
        self.base_model = base_model
        self.served = 0
        self.events_fd, write_fd = os.pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._stderr_start = 0
        try:
            self._popen = spawn(
                [*command, "--events-fd", str(write_fd)],
                env=env,
                stdin=subprocess.PIPE,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=(write_fd,),
            )
        finally:
            os.close(write_fd)

    @property
    def returncode(self) -> int | None:
        """Its exit code, once it has ended and was waited for."""
        return self._popen.returncode

    def is_alive(self) -> bool:
        """Whether it runs and has said nothing that nobody asked for."""
        ready, _, _ = select.select([self.events_fd], [], [], 0)
        return self._popen.poll() is None and not ready

    def send(self, request: TrainerRequest) -> None:
        """Give it a request; where it has ended already, its exit code tells."""
        self.served += 1
        self._stderr_start = self._stderr.seek(0, os.SEEK_END)
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(request.model_dump_json().encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            logger.debug("the trainer ended before it read its request")

    def ask_to_stop(self) -> None:
        """Let it save a checkpoint and end."""
        self._popen.send_signal(signal.SIGTERM)

    def ask_where_it_is(self) -> None:
        """Let it write to its standard error where it is."""
        self._popen.send_signal(signal.SIGUSR1)

    def memory(self) -> int:
        """What it and its children keep in memory, in bytes."""
        try:
            process = psutil.Process(self._popen.pid)
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        total = 0
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += member.memory_info().rss
        return total

    def wait(self, timeout_s: float) -> bool:
        """Whether it ends within this time."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, grace_s: float) -> None:
        """Tell it that no request comes any more, and see it off."""
        self._close_stdin()
        self.wait(grace_s)
        self.kill()

    def kill_group(self) -> None:
        """End it and its children at once."""
        kill_group(self._popen)

    def kill(self) -> None:
        """The same, and close its channels."""
        self.kill_group()
        self._close_stdin()
        if not self._stderr.closed:
            self._stderr.close()
            os.close(self.events_fd)

    def stderr_tail(self) -> str:
        """The last lines it wrote since it was given the request."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr_start, size - 16384))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return "\n".join(deque(lines, maxlen=_STDERR_LINES))

    def _close_stdin(self) -> None:
        assert self._popen.stdin is not None
        # A line that it never read is still to be flushed.
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
