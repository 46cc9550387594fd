"""A trainer process: request lines in, events out, its limits watched, its end interpreted.

Independent of Celery, Redis and torch.
"""

import contextlib
import logging
import math
import os
import select
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
from pydantic import ValidationError

from tasks.errors import ErrorCode, TrainerError, UnreadableFileError
from tasks.events import (
    CacheDone,
    CaptionDone,
    CheckpointSaved,
    Event,
    EventRouter,
    Heartbeat,
    PackStored,
    TrainDone,
    TrainerStarted,
    TrainFailed,
    parse_event,
)
from tasks.stages.cuda_errors import GPU_MESSAGES, find_cuda_error
from tasks.stages.trainer_protocol import CaptionRequest, Request, TrainerExit
from tasks.stages.worker_context import TrainerInterrupted
from worker.supervision.process import kill_group, spawn

logger = logging.getLogger(__name__)

Answer = CacheDone | TrainDone | CaptionDone
"""What a trainer ends a request with that it has carried out."""

# An event is a line of a few hundred bytes.
_MAX_LINE = 256 * 1024
_READ_BYTES = 64 * 1024
_POLL_EVERY_S = 0.5
_MEASURE_MEMORY_EVERY_S = 5.0
_STACK_DUMP_WITHIN_S = 1.0
_STDERR_LINES = 30
_STDERR_BYTES = 3 * 1024


@dataclass(frozen=True)
class Limits:
    """The limits of a trainer process.

    Attributes:
        silence_s: Seconds without an event after which it counts as hung.
        memory: Bytes of host memory for it and its children; None is no limit.
        total_s: Seconds for one request, restarts included; None is no limit.
        grace_s: Seconds in which it saves a checkpoint and stops.
    """

    silence_s: float = 1800.0
    memory: int | None = None
    total_s: float | None = None
    grace_s: float = 60.0


class TrainerExitedIdleError(Exception):
    """A kept trainer exited, after its idle timeout, before it read the request."""


class TrainerCrashedError(Exception):
    """The trainer ended without an answer.

    Attributes:
        cause: One line on how it ended.
    """

    def __init__(
        self, how: str, stderr: str, checkpoint: CheckpointSaved | None, stored: set[str]
    ) -> None:
        self.cause = f"the trainer {how}"
        super().__init__(self.cause + (f"; its last output:\n{stderr}" if stderr else ""))
        self._checkpoint = checkpoint
        self._stored = stored

    def rest_of(self, request: Request) -> Request:
        """Return what is left of the request: from the last checkpoint, without stored entries.

        Captions that are written are in the store.
        """
        if isinstance(request, CaptionRequest):
            return request
        entries = tuple(entry for entry in request.cache_entries if entry not in self._stored)
        changes: dict[str, object] = {"cache_entries": entries}
        if self._checkpoint is not None:
            changes["resume_state_key"] = self._checkpoint.state_key
        return request.model_copy(update=changes)


@dataclass
class _Progress:
    """What a trainer has reported of its current request, and what was requested of it."""

    request: Request
    deadline: float
    last_output_at: float = field(default_factory=time.monotonic)
    measured_at: float = field(default_factory=time.monotonic)
    has_output: bool = False
    checkpoint: CheckpointSaved | None = None
    stored: set[str] = field(default_factory=set)
    answer: Answer | TrainFailed | None = None
    is_overdue: bool = False
    kill_at: float | None = None
    """When its grace period ends; None until it is asked to stop."""

    def event_router(self, default: Callable[[Event], None]) -> EventRouter:
        """Return a router that notes the trainer's events; ``default`` gets all but answers."""
        router = EventRouter(default)
        router.handle(Heartbeat, lambda _: None)
        router.handle(CacheDone, self._set_answer)
        router.handle(TrainDone, self._set_answer)
        router.handle(CaptionDone, self._set_answer)
        router.handle(TrainFailed, self._set_answer)
        router.observe(CheckpointSaved, self._set_checkpoint)
        router.observe(PackStored, lambda event: self.stored.update(event.entries))
        return router

    def _set_answer(self, answer: Answer | TrainFailed) -> None:
        self.answer = answer

    def _set_checkpoint(self, checkpoint: CheckpointSaved) -> None:
        self.checkpoint = checkpoint


class TrainerProcess:
    """A trainer process, which serves one request after the other.

    Args:
        command: The command; ``--events-fd N`` is added.
        env: Its environment.
        base_model: The base model of its requests, which it keeps loaded.
        limits: Its limits.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], base_model: tuple[str, ...], limits: Limits
    ) -> None:
        self.base_model = base_model
        self.served = 0
        self.is_waiting = True
        """Whether it can take a request; False while it has one and after any failure."""
        self._limits = limits
        self._events_fd, write_fd = os.pipe()
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

    def is_alive(self) -> bool:
        """Return whether it runs and has no unread output."""
        ready, _, _ = select.select([self._events_fd], [], [], 0)
        return self._popen.poll() is None and not ready

    def run(
        self,
        request: Request,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
        deadline: float = math.inf,
    ) -> Answer:
        """Run a request; afterwards the process waits for another one or is dead.

        Args:
            request: The request.
            on_event: Called with each event.
            stop_requested: Polled; True stops the trainer.
            deadline: When the request is stopped, on the monotonic clock.

        Raises:
            TrainerExitedIdleError: It exited before it read the request.
            TrainerCrashedError: It ended without an answer.
            TrainerError: It failed, or exceeded a limit.
            TrainerInterrupted: It stopped as requested.
        """
        self.is_waiting = False
        try:
            progress = _Progress(request, deadline)
            router = progress.event_router(on_event)
            self._send(request)
            for event in self._read_events(progress, stop_requested):
                if not progress.has_output and self.served > 1:
                    on_event(TrainerStarted(how="warm"))
                progress.has_output = True
                router(event)
                answer = progress.answer
                if isinstance(answer, Answer) and progress.kill_at is None:
                    self.is_waiting = True
                    return answer
            has_ended = self._wait(self._limits.grace_s)
            # A process whose GPU failed may hang at its end.
            if not has_ended and not isinstance(progress.answer, TrainFailed):
                raise _crash("closed its pipe and did not end", progress)
            return self._interpret_end(progress)
        finally:
            if not self.is_waiting:
                self.kill()

    def end(self) -> None:
        """Close its input, which ends it, and wait for its end."""
        self._close_stdin()
        self._wait(self._limits.grace_s)
        self.kill()

    def kill(self) -> None:
        """Kill it and its children and close its channels."""
        kill_group(self._popen)
        self._close_stdin()
        if not self._stderr.closed:
            self._stderr.close()
            os.close(self._events_fd)

    def _send(self, request: Request) -> None:
        self.served += 1
        self._stderr_start = self._stderr.seek(0, os.SEEK_END)
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(request.model_dump_json().encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            logger.debug("the trainer ended before it read its request")  # its exit code says why

    def _read_events(
        self, progress: _Progress, stop_requested: Callable[[], bool]
    ) -> Iterator[Event]:
        """Yield each event as it arrives, until the trainer closes the pipe."""
        buffer = b""
        poll_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= poll_at:
                poll_at = now + _POLL_EVERY_S
                self._check_stop(progress, now, stop_requested)
            self._check_limits(progress, now)
            ready, _, _ = select.select([self._events_fd], [], [], _POLL_EVERY_S)
            if not ready:
                continue
            chunk = os.read(self._events_fd, _READ_BYTES)
            if not chunk:
                return
            progress.last_output_at = time.monotonic()
            *lines, buffer = (buffer + chunk).split(b"\n")
            for number, line in enumerate(lines, start=1):
                event = _parse(line, progress)
                is_last = number == len(lines) and not buffer
                if isinstance(event, Answer) and not is_last:
                    raise _crash("sent an event after its answer", progress)
                yield event
            if len(buffer) > _MAX_LINE:
                raise _crash(f"sent an event longer than {_MAX_LINE} bytes", progress)

    def _check_stop(
        self, progress: _Progress, now: float, stop_requested: Callable[[], bool]
    ) -> None:
        progress.is_overdue |= now >= progress.deadline
        if progress.kill_at is None and (stop_requested() or progress.is_overdue):
            self._popen.send_signal(signal.SIGTERM)
            progress.kill_at = now + self._limits.grace_s
        if progress.kill_at is not None and now >= progress.kill_at:
            kill_group(self._popen)

    def _check_limits(self, progress: _Progress, now: float) -> None:
        if now - progress.last_output_at > self._limits.silence_s:
            self._popen.send_signal(signal.SIGUSR1)  # it writes its stacks to standard error
            self._wait(_STACK_DUMP_WITHIN_S)
            silent = f"sent no event for {self._limits.silence_s:g} s"
            raise _crash(silent, progress, self._stderr_tail())
        max_bytes = self._limits.memory
        if max_bytes is None or now - progress.measured_at < _MEASURE_MEMORY_EVERY_S:
            return
        progress.measured_at = now
        used_bytes = self._memory_bytes()
        if used_bytes > max_bytes:
            message = (
                f"the trainer uses {used_bytes:,} bytes of this machine's memory; "
                f"TRAINING_TRAINER_MAX_MEMORY allows {max_bytes:,}"
            )
            raise TrainerError(message, progress.request.stage)

    def _interpret_end(self, progress: _Progress) -> Answer:
        """Return the answer of a trainer that has exited, or raise what its exit means."""
        code, answer = self._popen.returncode, progress.answer
        if self.served > 1 and code == TrainerExit.DONE and not progress.has_output:
            raise TrainerExitedIdleError
        if code == TrainerExit.DONE and isinstance(answer, Answer):
            return answer
        stage = progress.request.stage
        if isinstance(answer, TrainFailed) and answer.file_key is not None:
            raise UnreadableFileError(answer.message, stage, answer.file_key)
        if isinstance(answer, TrainFailed):
            # A trainer exits as crashed on transient errors, such as an unavailable store. One
            # whose GPU failed may be aborted at its end.
            retryable = code == TrainerExit.CRASHED or answer.code == ErrorCode.GPU_FAILED
            raise TrainerError(answer.message, stage, answer.code, retryable)
        if progress.is_overdue:
            reached = f"; it reached step {progress.checkpoint.step}" if progress.checkpoint else ""
            message = f"took longer than the {self._limits.total_s:g} s of TRAINING_STAGE_TIMEOUT"
            raise TrainerError(f"the trainer {message}{reached}", stage)
        if code == TrainerExit.INTERRUPTED or progress.kill_at is not None:
            raise TrainerInterrupted
        stderr = self._stderr_tail()
        found = find_cuda_error(stderr)
        if found is not None:
            error_code, line = found
            message = f"{GPU_MESSAGES[error_code]}, and the trainer ended at once: {line}"
            raise TrainerError(message, stage, error_code, error_code == ErrorCode.GPU_FAILED)
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (the kernel does this when memory is short)" if name == "SIGKILL" else ""
            raise _crash(f"was ended by {name}{hint}", progress, stderr)
        raise _crash(f"ended with exit code {code} and no answer", progress, stderr)

    def _memory_bytes(self) -> int:
        """Return the resident memory of the process and its children."""
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

    def _wait(self, timeout_s: float) -> bool:
        """Return whether the process exits in time."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _stderr_tail(self) -> str:
        """Return the last lines it has written since it got its request."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr_start, size - _STDERR_BYTES))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return "\n".join(deque(lines, maxlen=_STDERR_LINES))

    def _close_stdin(self) -> None:
        assert self._popen.stdin is not None
        # A line that the process never read fails to flush.
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()


def _parse(line: bytes, progress: _Progress) -> Event:
    try:
        return parse_event(line)
    except ValidationError as error:
        raise _crash(f"sent a line that is not an event: {line[:200]!r}", progress) from error


def _crash(how: str, progress: _Progress, stderr: str = "") -> TrainerCrashedError:
    return TrainerCrashedError(how, stderr, progress.checkpoint, progress.stored)
