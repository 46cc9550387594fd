"""Trainer supervision: requests given to a trainer process, its events read, its end understood.

Knows processes and pipes; must not know Celery, Redis or torch.
"""

import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from tasks.errors import TrainerError
from tasks.events import (
    CacheDone,
    CheckpointSaved,
    Event,
    Heartbeat,
    Note,
    PackStored,
    TrainDone,
    TrainerStarted,
    TrainFailed,
    parse_event,
)
from tasks.stages.trainer_protocol import TrainerExit, TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted
from worker.supervision.trainer_process import TrainerProcess

logger = logging.getLogger(__name__)

# An event is a line of a few hundred bytes; a longer one is no event of ours.
_LONGEST_LINE = 256 * 1024
_SAID = "; it said:\n"
_ASK_EVERY_S = 0.5
_WEIGH_EVERY_S = 5.0
_LAST_WORDS_S = 1.0
_COMMAND = (sys.executable, "-P", "-m", "worker.trainer")


@dataclass(frozen=True)
class Limits:
    """What a trainer may take.

    Attributes:
        silence_s: Seconds without a sign of life after which it counts as hung.
        memory: Bytes that it and its children may keep in the host's memory; None is no limit.
        total_s: Seconds that one request may take, restarts included; None is no limit.
    """

    silence_s: float = 1800.0
    memory: int | None = None
    total_s: float | None = None


_USUAL = Limits()


class TrainerPool:
    """Runs trainer requests: the ``Trainer`` of ``tasks.stages.worker_context``.

    A trainer that has answered well is kept, with its libraries and models loaded, for the next
    request of the same base model; any error, a stop, or another base model ends it.

    Args:
        env: The trainer's environment.
        restarts: How often a trainer that crashed is started again, from its last checkpoint.
        stop_grace_s: How long it may take to save a checkpoint and stop.
        limits: What it may take.
        most_requests: How many requests one trainer serves; 1 keeps none.
        idle_s: How long a trainer waits for the next request before it ends by itself.
        command: What is started; it gets ``--events-fd N --idle-s S`` and request lines on its
            input.
    """

    def __init__(
        self,
        env: dict[str, str],
        *,
        restarts: int,
        stop_grace_s: float,
        limits: Limits = _USUAL,
        most_requests: int = 1,
        idle_s: float = 60.0,
        command: tuple[str, ...] = _COMMAND,
    ) -> None:
        self._env = env
        self._restarts = restarts
        self._stop_grace_s = stop_grace_s
        self._limits = limits
        self._most_requests = most_requests
        self._idle_s = idle_s
        self._command = command
        self._kept: TrainerProcess | None = None

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request to its end; see ``tasks.stages.worker_context.Trainer``."""
        end_at = time.monotonic() + (self._limits.total_s or math.inf)
        for restart in range(self._restarts + 1):
            try:
                return self._run_once(request, on_event, stop_requested, end_at, restart > 0)
            except _TrainerCrashedError as crash:
                if restart == self._restarts:
                    raise TrainerError(str(crash), request.stage, retryable=True) from crash
                logger.warning("%s", crash, extra={"job": request.job_id, "stage": request.stage})
                request = crash.rest_of(request)
                how = str(crash).partition(_SAID)[0]
                on_event(Note(level="warning", message=f"{how}; it is started again"))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the trainer that is kept, if there is one."""
        if self._kept is not None:
            self._kept.end(self._stop_grace_s)
            self._kept = None

    def _run_once(
        self,
        request: TrainerRequest,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
        end_at: float,
        restarted: bool,
    ) -> CacheDone | TrainDone:
        process = self._take(request)
        how = "warm" if process.served else "restart" if restarted else "cold"
        on_event(TrainerStarted(how=how))
        run = _Run(process, request, self._stop_grace_s, self._limits, end_at)
        try:
            answer = run.to_its_end(on_event, stop_requested)
        except _EndedIdleError:
            return self._run_once(request, on_event, stop_requested, end_at, restarted)
        finally:
            if not run.left_well:
                process.kill()
        if run.left_well and process.served < self._most_requests:
            self._kept = process
        elif run.left_well:
            process.end(self._stop_grace_s)
        return answer

    def _take(self, request: TrainerRequest) -> "TrainerProcess":
        """The kept trainer where it will do, or a new one; it is nobody else's from here on."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.base_model == request.base_model and kept.is_alive():
                return kept
            kept.end(self._stop_grace_s)
        command = [*self._command, "--idle-s", str(self._idle_s)]
        return TrainerProcess(command, self._env, request.base_model)


class _EndedIdleError(Exception):
    """A kept trainer ended by itself before it read the request."""


class _TrainerCrashedError(Exception):
    """The trainer ended without an answer."""

    def __init__(
        self, how: str, stderr: str, checkpoint: CheckpointSaved | None, stored: set[str]
    ) -> None:
        super().__init__(f"the trainer {how}" + (f"{_SAID}{stderr}" if stderr else ""))
        self._checkpoint = checkpoint
        self._stored = stored

    def rest_of(self, request: TrainerRequest) -> TrainerRequest:
        """What is left of the request: from the last checkpoint, without the entries stored."""
        entries = tuple(it for it in request.cache_entries if it not in self._stored)
        changes: dict[str, object] = {"cache_entries": entries}
        if self._checkpoint is not None:
            changes["resume_state_key"] = self._checkpoint.state_key
        return request.model_copy(update=changes)


class _Run:
    """One request to a trainer process."""

    def __init__(
        self,
        process: TrainerProcess,
        request: TrainerRequest,
        stop_grace_s: float,
        limits: Limits,
        end_at: float,
    ) -> None:
        self._process = process
        self._request = request
        self._stop_grace_s = stop_grace_s
        self._limits = limits
        self._end_at = end_at
        self._out_of_time = False
        self._heard_at = self._weighed_at = time.monotonic()
        self._checkpoint: CheckpointSaved | None = None
        self._stored: set[str] = set()
        self._answer: CacheDone | TrainDone | TrainFailed | None = None
        self._heard_anything = False
        self.left_well = False
        """Whether the process answered and waits for another request."""
        self._kill_at: float | None = None
        """When its grace time is over; None until it is asked to stop."""

    def to_its_end(
        self, on_event: Callable[[Event], None], stop_requested: Callable[[], bool]
    ) -> CacheDone | TrainDone:
        self._process.send(self._request)
        for event in self._events(stop_requested):
            self._take(event, on_event)
            if isinstance(self._answer, CacheDone | TrainDone) and self._kill_at is None:
                self.left_well = True
                return self._answer
        if not self._process.wait(self._stop_grace_s):
            raise self._crashed("closed its pipe and did not end")
        return self._outcome(self._process.returncode, self._process.stderr_tail())

    def _events(self, stop_requested: Callable[[], bool]) -> Iterator[Event]:
        """Each event as it comes, until the trainer closes the pipe."""
        buffer = b""
        ask_at = time.monotonic()
        while True:
            now = time.monotonic()
            self._out_of_time |= now >= self._end_at
            if self._kill_at is None and now >= ask_at:
                ask_at = now + _ASK_EVERY_S
                if stop_requested() or self._out_of_time:
                    self._process.ask_to_stop()
                    self._kill_at = now + self._stop_grace_s
            self._check_limits(now)
            if self._kill_at is not None and now >= self._kill_at:
                self._process.kill_group()
            ready, _, _ = select.select([self._process.events_fd], [], [], _ASK_EVERY_S)
            if not ready:
                continue
            chunk = os.read(self._process.events_fd, 65536)
            if not chunk:
                return
            self._heard_anything = True
            self._heard_at = time.monotonic()
            *lines, buffer = (buffer + chunk).split(b"\n")
            for number, line in enumerate(lines, start=1):
                event = self._parsed(line)
                is_last = number == len(lines) and not buffer
                if isinstance(event, CacheDone | TrainDone) and not is_last:
                    raise self._crashed("went on after its answer")
                yield event
            if len(buffer) > _LONGEST_LINE:
                raise self._crashed(f"sent an event longer than {_LONGEST_LINE} bytes")

    def _check_limits(self, now: float) -> None:
        if now - self._heard_at > self._limits.silence_s:
            self._process.ask_where_it_is()
            self._process.wait(_LAST_WORDS_S)
            silent = f"gave no sign of life for {self._limits.silence_s:g} s"
            raise self._crashed(silent, self._process.stderr_tail())
        if self._limits.memory is None or now - self._weighed_at < _WEIGH_EVERY_S:
            return
        self._weighed_at = now
        memory = self._process.memory()
        if memory > self._limits.memory:
            message = (
                f"the trainer takes {memory:,} bytes of this machine's memory; "
                f"TRAINING_TRAINER_MAX_MEMORY allows {self._limits.memory:,}"
            )
            raise TrainerError(message, self._request.stage)

    def _parsed(self, line: bytes) -> Event:
        try:
            return parse_event(line)
        except ValidationError as error:
            raise self._crashed(f"sent what is no event: {line[:200]!r}") from error

    def _take(self, event: Event, on_event: Callable[[Event], None]) -> None:
        if isinstance(event, CacheDone | TrainDone | TrainFailed):
            self._answer = event
            return
        if isinstance(event, Heartbeat):
            return
        on_event(event)
        if isinstance(event, CheckpointSaved):
            self._checkpoint = event
        if isinstance(event, PackStored):
            self._stored.update(event.entries)

    def _outcome(self, code: int | None, stderr: str) -> CacheDone | TrainDone:
        answer = self._answer
        if code is None:
            raise AssertionError("the trainer has ended")
        # A kept one whose time was over as the request came.
        was_kept = self._process.served > 1
        if was_kept and code == TrainerExit.DONE and not self._heard_anything:
            raise _EndedIdleError
        if code == TrainerExit.DONE and isinstance(answer, CacheDone | TrainDone):
            return answer
        if isinstance(answer, TrainFailed):
            crashed = code == TrainerExit.CRASHED  # of what may pass, such as a store that is away
            raise TrainerError(answer.message, self._request.stage, answer.code, crashed)
        if self._out_of_time:
            came = f"; it came to step {self._checkpoint.step}" if self._checkpoint else ""
            message = f"took longer than the {self._limits.total_s:g} s of TRAINING_STAGE_TIMEOUT"
            raise TrainerError(f"the trainer {message}{came}", self._request.stage)
        if code == TrainerExit.INTERRUPTED or self._kill_at is not None:
            raise TrainerInterrupted
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (so does the kernel where memory is short)" if name == "SIGKILL" else ""
            raise self._crashed(f"was ended by {name}{hint}", stderr)
        raise self._crashed(f"ended with exit code {code} and no answer", stderr)

    def _crashed(self, how: str, stderr: str = "") -> _TrainerCrashedError:
        return _TrainerCrashedError(how, stderr, self._checkpoint, self._stored)


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
