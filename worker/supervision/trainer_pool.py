"""Trainer pool: gives requests to trainer processes, keeps them warm and restarts them.

Independent of Celery, Redis and torch.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal

from tasks.errors import TrainerError
from tasks.events import CacheDone, CaptionDone, Event, Note, TrainDone, TrainerStarted
from tasks.stages.trainer_protocol import CaptionRequest, Request, TrainerRequest
from worker.supervision.trainer_process import (
    Answer,
    Limits,
    TrainerCrashedError,
    TrainerExitedIdleError,
    TrainerProcess,
)

logger = logging.getLogger(__name__)

# Buckets of different sizes fragment the allocator's fixed segments.
_ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
# Threads that wait for one another spin for long otherwise: beside another busy program on two
# cores, the demo's training did not end in minutes. Without spinning, it takes half as long again.
_ON_THE_CPU = {"GOMP_SPINCOUNT": "3000"}
_FRAGMENTS = "trainers need expandable segments"
_OTHER_NUMBERS = "a job computes the same numbers on every machine"
# PyTorch or CUDA would prefer these to the settings of trainers and jobs.
_IGNORED = {
    "PYTORCH_ALLOC_CONF": _FRAGMENTS,
    "PYTORCH_CUDA_ALLOC_CONF": _FRAGMENTS,
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "each tensor would wait for the driver",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _OTHER_NUMBERS,
    "NVIDIA_TF32_OVERRIDE": _OTHER_NUMBERS,
    "TORCH_BLAS_PREFER_CUBLASLT": _OTHER_NUMBERS,
}

_IGNORED_PREFIXES = ("TORCHDYNAMO_", "TORCHINDUCTOR_", "TRITON_")
_OTHER_CODE = "the option compile makes the same code on every machine, in a folder of its own"

StartKind = Literal["cold", "restart"]
_COMMAND = (sys.executable, "-P", "-m", "worker.trainer")


class TrainerPool:
    """Runs trainer requests: the ``Trainer`` of ``tasks.stages.worker_context``.

    A trainer that has answered is kept, with its libraries and models loaded, for the next request
    of the same base model. An error, a stop or another base model ends it.

    Args:
        env: The trainer's environment.
        restarts: How often a crashed trainer is restarted, from its last checkpoint.
        limits: The limits of each trainer process.
        max_requests: How many requests one trainer serves; 1 keeps no trainer.
        idle_s: How long a trainer waits for the next request before it exits.
        command: The trainer's command; it gets ``--events-fd N --idle-s S`` and request lines on
            its input.
    """

    def __init__(
        self,
        env: dict[str, str],
        *,
        restarts: int,
        limits: Limits,
        max_requests: int = 1,
        idle_s: float = 60.0,
        command: tuple[str, ...] = _COMMAND,
    ) -> None:
        self._env = env
        self._restarts = restarts
        self._limits = limits
        self._max_requests = max_requests
        self._command = [*command, "--idle-s", str(idle_s)]
        self._kept: TrainerProcess | None = None

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request; see ``tasks.stages.worker_context.Trainer``."""
        answer = self._run(request, on_event, stop_requested)
        if isinstance(answer, CaptionDone):
            raise TypeError(f"the trainer answered a {request.stage} request with {answer.kind}")
        return answer

    def caption(
        self,
        request: CaptionRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Write captions; see ``tasks.stages.worker_context.CaptioningTrainer``."""
        answer = self._run(request, on_event, stop_requested)
        if not isinstance(answer, CaptionDone):
            raise TypeError(f"the trainer answered a caption request with {answer.kind}")

    def close(self) -> None:
        """End the kept trainer."""
        if self._kept is not None:
            self._kept.end()
            self._kept = None

    def _run(
        self,
        request: Request,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> Answer:
        """Run a request, and what is left of it after each crash."""
        deadline = time.monotonic() + (self._limits.total_s or math.inf)
        how: StartKind = "cold"
        for restarts_left in reversed(range(self._restarts + 1)):
            try:
                return self._run_once(request, on_event, stop_requested, deadline, how)
            except TrainerCrashedError as crash:
                if not restarts_left:
                    raise TrainerError(str(crash), request.stage, retryable=True) from crash
                logger.warning("%s", crash, extra={"job": request.job_id, "stage": request.stage})
                request, how = crash.rest_of(request), "restart"
                on_event(Note(level="warning", message=f"{crash.cause}; it is restarted"))
        raise AssertionError("unreachable")

    def _run_once(
        self,
        request: Request,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
        deadline: float,
        how: StartKind,
    ) -> Answer:
        """Run a request in the kept trainer if that can serve it, else in a new one."""
        kept = self._take_kept(request)
        if kept is not None:
            try:
                return self._run_in(kept, request, on_event, stop_requested, deadline)
            except TrainerExitedIdleError:
                logger.debug("the kept trainer exited idle; a new one serves the request")
        on_event(TrainerStarted(how=how))
        process = TrainerProcess(self._command, self._env, request.base_model, self._limits)
        return self._run_in(process, request, on_event, stop_requested, deadline)

    def _run_in(
        self,
        process: TrainerProcess,
        request: Request,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
        deadline: float,
    ) -> Answer:
        """Run a request in a process, and keep the process for the next request."""
        answer = process.run(
            request, on_event=on_event, stop_requested=stop_requested, deadline=deadline
        )
        if process.is_waiting and process.served < self._max_requests:
            self._kept = process
        elif process.is_waiting:
            process.end()
        return answer

    def _take_kept(self, request: Request) -> TrainerProcess | None:
        """Return the kept trainer, which is kept no more; None, and end it, if it cannot serve."""
        kept, self._kept = self._kept, None
        if kept is None or (kept.base_model == request.base_model and kept.is_alive()):
            return kept
        kept.end()
        return None


def ignored_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that trainers do not get, and why."""
    found = {name: _IGNORED.get(name) for name in env}
    found |= {name: _OTHER_CODE for name in env if name.startswith(_IGNORED_PREFIXES)}
    return {
        name: reason
        for name, reason in found.items()
        if reason is not None and env[name] != _ALLOCATOR.get(name)
    }


def trainer_environment(
    inherited: dict[str, str], cuda_visible_devices: str | None
) -> dict[str, str]:
    """Return a trainer's environment: ours without settings and secrets, pinned to a GPU.

    Args:
        inherited: Our environment; credentials of the store and the Hub in it are kept.
        cuda_visible_devices: The GPU's UUID; None for trainers that compute on the CPU.
    """
    ignored = ignored_variables(inherited)
    for name, reason in ignored.items():
        logger.warning("trainers ignore the environment's %s: %s", name, reason)
    kept = {k: v for k, v in inherited.items() if not (k in ignored or k.startswith("TRAINING_"))}
    on_the_cpu = _ON_THE_CPU if cuda_visible_devices is None else {}
    return {
        **on_the_cpu,
        **kept,
        **_ALLOCATOR,
        "CUDA_VISIBLE_DEVICES": cuda_visible_devices or "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
