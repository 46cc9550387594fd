"""Trainer supervision: one trainer process a request, its events read, its end understood.

Knows processes and pipes; must not know Celery, Redis or torch.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO

from pydantic import ValidationError

from tasks.errors import TrainerError
from tasks.events import (
    CacheDone,
    CheckpointSaved,
    Event,
    Note,
    TrainDone,
    TrainFailed,
    parse_event,
)
from tasks.requests import TrainerExit, TrainerRequest
from tasks.runtime import TrainerInterrupted
from worker.process import kill_group, spawn

logger = logging.getLogger(__name__)

# An event is a line of a few hundred bytes; a longer one is no event of ours.
_LONGEST_LINE = 256 * 1024
_ASK_EVERY_S = 0.5
_STDERR_LINES = 30
_COMMAND = (sys.executable, "-P", "-m", "worker.trainer")


class TrainerProcess:
    """Runs trainer requests, each in a process of its own: the ``Trainer`` of ``tasks.runtime``.

    Args:
        env: The trainer's environment.
        restarts: How often a trainer that crashed is started again, from its last checkpoint.
        stop_grace_s: How long it may take to save a checkpoint and stop.
        command: What is started; it gets ``--events-fd N`` and a request line on its input.
    """

    def __init__(
        self,
        env: dict[str, str],
        *,
        restarts: int,
        stop_grace_s: float,
        command: tuple[str, ...] = _COMMAND,
    ) -> None:
        self._env = env
        self._restarts = restarts
        self._stop_grace_s = stop_grace_s
        self._command = command

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request to its end; see ``tasks.runtime.Trainer``."""
        for restart in range(self._restarts + 1):
            try:
                run = _Run(self._command, self._env, request, self._stop_grace_s)
                return run.to_its_end(on_event, stop_requested)
            except _TrainerCrashedError as crash:
                if restart == self._restarts:
                    raise TrainerError(str(crash), request.stage, retryable=True) from crash
                logger.warning("%s", crash, extra={"job": request.job_id, "stage": request.stage})
                if crash.checkpoint is not None:
                    resume = {"resume_state_key": crash.checkpoint.state_key}
                    request = request.model_copy(update=resume)
                first_line = str(crash).partition("\n")[0]
                on_event(Note(level="warning", message=f"{first_line}; it is started again"))
        raise AssertionError("unreachable")


class _TrainerCrashedError(Exception):
    """The trainer ended without an answer."""

    def __init__(self, how: str, stderr: str, checkpoint: CheckpointSaved | None) -> None:
        super().__init__(f"the trainer {how}" + (f"; it said:\n{stderr}" if stderr else ""))
        self.checkpoint = checkpoint


class _Run:
    """One trainer process."""

    def __init__(
        self,
        command: tuple[str, ...],
        env: dict[str, str],
        request: TrainerRequest,
        stop_grace_s: float,
    ) -> None:
        self._command = command
        self._env = env
        self._request = request
        self._stop_grace_s = stop_grace_s
        self._checkpoint: CheckpointSaved | None = None
        self._answer: CacheDone | TrainDone | TrainFailed | None = None
        self._kill_at: float | None = None
        """When its grace time is over; None until it is asked to stop."""

    def to_its_end(
        self, on_event: Callable[[Event], None], stop_requested: Callable[[], bool]
    ) -> CacheDone | TrainDone:
        read_fd, write_fd = os.pipe()
        with tempfile.TemporaryFile() as stderr:
            try:
                process = spawn(
                    [*self._command, "--events-fd", str(write_fd)],
                    env=self._env,
                    stdin=subprocess.PIPE,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=(write_fd,),
                )
            finally:
                os.close(write_fd)
            try:
                self._send_request(process)
                for event in self._events(process, read_fd, stop_requested):
                    self._take(event, on_event)
                self._wait_for_end(process)
            finally:
                kill_group(process)
                os.close(read_fd)
            return self._outcome(process.returncode, _tail(stderr))

    def _wait_for_end(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            process.wait(self._stop_grace_s)
        except subprocess.TimeoutExpired:
            raise self._crashed("closed its pipe and did not end") from None

    def _send_request(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(self._request.model_dump_json().encode() + b"\n")
        except BrokenPipeError:
            logger.debug("the trainer ended before it read its request")  # its exit code tells

    def _events(
        self,
        process: "subprocess.Popen[bytes]",
        read_fd: int,
        stop_requested: Callable[[], bool],
    ) -> Iterator[Event]:
        """Each event as it comes, until the trainer closes the pipe."""
        buffer = b""
        ask_at = time.monotonic()
        while True:
            now = time.monotonic()
            if self._kill_at is None and now >= ask_at:
                ask_at = now + _ASK_EVERY_S
                if stop_requested():
                    process.send_signal(signal.SIGTERM)
                    self._kill_at = now + self._stop_grace_s
            if self._kill_at is not None and now >= self._kill_at:
                kill_group(process)
            ready, _, _ = select.select([read_fd], [], [], _ASK_EVERY_S)
            if not ready:
                continue
            chunk = os.read(read_fd, 65536)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                yield self._parsed(line)
            if len(buffer) > _LONGEST_LINE:
                raise self._crashed(f"sent an event longer than {_LONGEST_LINE} bytes")

    def _parsed(self, line: bytes) -> Event:
        try:
            return parse_event(line)
        except ValidationError as error:
            raise self._crashed(f"sent what is no event: {line[:200]!r}") from error

    def _take(self, event: Event, on_event: Callable[[Event], None]) -> None:
        if isinstance(event, CacheDone | TrainDone | TrainFailed):
            self._answer = event
            return
        on_event(event)
        if isinstance(event, CheckpointSaved):
            self._checkpoint = event

    def _outcome(self, code: int, stderr: str) -> CacheDone | TrainDone:
        answer = self._answer
        if code == TrainerExit.DONE and isinstance(answer, CacheDone | TrainDone):
            return answer
        if isinstance(answer, TrainFailed):
            raise TrainerError(answer.message, self._request.stage, answer.code)
        if code == TrainerExit.INTERRUPTED or self._kill_at is not None:
            raise TrainerInterrupted
        if code < 0:
            raise self._crashed(f"was ended by {signal.Signals(-code).name}", stderr)
        raise self._crashed(f"ended with exit code {code} and no answer", stderr)

    def _crashed(self, how: str, stderr: str = "") -> _TrainerCrashedError:
        return _TrainerCrashedError(how, stderr, self._checkpoint)


def trainer_environment(
    inherited: dict[str, str], cuda_visible_devices: str | None
) -> dict[str, str]:
    """The environment of trainers: ours without our own settings and secrets, pinned to a GPU.

    Args:
        inherited: Our own environment; the store's and the Hub's credentials in it are kept.
        cuda_visible_devices: The GPU's UUID; None where trainers compute on the CPU.
    """
    kept = {key: value for key, value in inherited.items() if not key.startswith("TRAINING_")}
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": cuda_visible_devices or "",
        # Buckets of different sizes fragment the allocator's fixed segments.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _tail(stderr: IO[bytes]) -> str:
    """The last lines of what a trainer wrote."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - 16384))
    lines = stderr.read().decode(errors="replace").splitlines()
    return "\n".join(deque(lines, maxlen=_STDERR_LINES))
