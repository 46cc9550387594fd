"""Training engines of this machine: what is installed, and which trainer serves a request."""

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import worker
from routing.queues import DIFFUSERS, INVOKE, Engine
from tasks.errors import ErrorCode, TrainerError
from tasks.events import CacheDone, Event, TrainDone
from tasks.jobs.invoke import parse_patches
from tasks.settings.settings import Settings
from tasks.stages.trainer_protocol import CaptionRequest, TrainerRequest
from tasks.stages.worker_context import CaptioningTrainer, Trainer
from worker.supervision.trainer_pool import TrainerPool
from worker.supervision.trainer_process import Limits

logger = logging.getLogger(__name__)

# Enough to import the library, with PyTorch, from a cold network disk.
_DESCRIBE_TIMEOUT_S = 300.0
_INVOKE_MODULE = "worker.trainer.invoke"
_INVOKE_GUIDE = "see docs/guides/invoke-training.md"
_DIFFUSERS_PACKAGES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Installed:
    """The installation of an engine.

    Attributes:
        versions: Library to version.
        problems: Why the engine cannot be used; empty if it can.
        remedy: What fixes the problems.
    """

    versions: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether jobs can be trained with it."""
        return not self.problems


def find_diffusers() -> Installed:
    """Return the installation of engine ``diffusers``, in this interpreter's environment."""
    versions, problems = {}, []
    for name in _DIFFUSERS_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            problems.append(f"{name} is not installed")
    remedy = "on GPU workers: pip install 'training-worker[train]'" if problems else ""
    return Installed(versions, tuple(problems), remedy)


def engine_folder(home: Path) -> Path:
    """Return where ``engines install`` makes the environment of ``invoke-training``."""
    return home / "engines" / INVOKE


def engine_python(home: Path) -> Path:
    """Return the interpreter in ``engine_folder``."""
    return engine_folder(home) / "bin" / "python"


def engine_marker(home: Path) -> Path:
    """Return the file in ``engine_folder`` that exists while the installation is complete."""
    return engine_folder(home) / "installed"


def invoke_python(settings: Settings) -> Path | None:
    """Return the interpreter of engine ``invoke-training``; None without one.

    It is the one that ``TRAINING_INVOKE_PYTHON`` names, else what ``engines install`` completed.
    """
    if settings.invoke_python is not None:
        return settings.invoke_python
    is_installed = engine_marker(settings.home_dir).exists()
    return engine_python(settings.home_dir) if is_installed else None


def find_invoke(python: Path | None) -> Installed:
    """Return the installation of engine ``invoke-training``; imports the library once.

    Args:
        python: The interpreter that ``invoke_python`` returns.
    """
    if python is None:
        remedy = f"to use this engine, run 'training-worker engines install'; {_INVOKE_GUIDE}"
        return Installed(problems=("it is not installed",), remedy=remedy)
    try:
        query = subprocess.run(
            [str(python), "-P", "-m", f"{_INVOKE_MODULE}.describe"],
            env=invoke_environment(dict(os.environ)),
            capture_output=True,
            text=True,
            timeout=_DESCRIBE_TIMEOUT_S,
            check=True,
        )
        answer = json.loads(query.stdout)
        problems = tuple(f"{python}: {problem}" for problem in answer["errors"])
        return Installed(answer["versions"], problems, _INVOKE_GUIDE if problems else "")
    except subprocess.CalledProcessError as error:
        problem = (error.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    return Installed(problems=(f"{python} cannot be used: {problem}",), remedy=_INVOKE_GUIDE)


def find_engines(settings: Settings) -> dict[Engine, Installed]:
    """Return the installation of each engine."""
    return {DIFFUSERS: find_diffusers(), INVOKE: find_invoke(invoke_python(settings))}


def invoke_command(settings: Settings) -> tuple[str, ...]:
    """Return the command of the trainer of engine ``invoke-training``."""
    return (str(invoke_python(settings)), "-P", "-m", _INVOKE_MODULE)


def invoke_environment(env: dict[str, str]) -> dict[str, str]:
    """Return an environment in which the other interpreter finds this package.

    A folder of installed packages is not passed on: its torch is not for that interpreter.
    """
    root = Path(worker.__file__).parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return {key: value for key, value in env.items() if key != "PYTHONPATH"}
    return {**env, "PYTHONPATH": str(root)}


def make_trainers(
    settings: Settings, env: dict[str, str], on_gpu_failure: Callable[[str], None]
) -> "EngineTrainers":
    """Make the trainers of a worker.

    Args:
        settings: The process's settings.
        env: The trainers' environment.
        on_gpu_failure: Called with the reason when the GPU failed while a trainer computed.
    """
    total = settings.stage_timeout
    limits = Limits(
        silence_s=settings.trainer_heartbeat_timeout.total_seconds(),
        memory=settings.trainer_max_memory,
        total_s=total.total_seconds() if total else None,
        grace_s=settings.shutdown_timeout.total_seconds(),
    )
    common: dict[str, Any] = {
        "restarts": settings.trainer_restarts,
        "limits": limits,
        "idle_s": settings.trainer_idle_timeout.total_seconds(),
    }
    diffusers = TrainerPool(env, max_requests=settings.trainer_max_requests, **common)
    # One request a process: the library can train only once in a process.
    command = invoke_command(settings)
    invoke = TrainerPool(invoke_environment(env), command=command, **common)
    return EngineTrainers(diffusers, invoke, settings.invoke_patches, on_gpu_failure)


class EngineTrainers:
    """Gives each request to its engine's trainer: the trainer of ``worker_context``.

    Args:
        diffusers: The trainer of engine ``diffusers``, whose process is kept between requests.
        invoke: The trainer of engine ``invoke-training``.
        patches: The value of ``TRAINING_INVOKE_PATCHES``.
        on_gpu_failure: Called with the reason when the GPU failed while a trainer computed.
    """

    def __init__(
        self,
        diffusers: CaptioningTrainer,
        invoke: Trainer,
        patches: str,
        on_gpu_failure: Callable[[str], None],
    ) -> None:
        self._on_gpu_failure = on_gpu_failure
        self._diffusers = diffusers
        self._invoke = invoke
        self._patches = tuple(sorted(parse_patches(patches)))

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request; see ``tasks.stages.worker_context.Trainer``."""
        trainer: Trainer = self._diffusers
        if request.engine == INVOKE:
            # The kept process of the other engine holds GPU memory.
            self._diffusers.close()
            trainer = self._invoke
            request = request.model_copy(update={"patches": self._patches})
        with self._reporting_gpu_failures():
            return trainer.run(request, on_event=on_event, stop_requested=stop_requested)

    def caption(
        self,
        request: CaptionRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Write captions; see ``tasks.stages.worker_context.CaptioningTrainer``."""
        with self._reporting_gpu_failures():
            self._diffusers.caption(request, on_event=on_event, stop_requested=stop_requested)

    def close(self) -> None:
        """End the kept trainers."""
        self._diffusers.close()
        self._invoke.close()

    @contextmanager
    def _reporting_gpu_failures(self) -> Iterator[None]:
        try:
            yield
        except TrainerError as error:
            if error.code == ErrorCode.GPU_FAILED:
                self._on_gpu_failure(error.message)
            raise
