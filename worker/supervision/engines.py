"""The engines of this machine: which are there, and the one that each request is for."""

import json
import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import worker
from routing.engines import DIFFUSERS, INVOKE, Engine
from tasks.events import CacheDone, Event, TrainDone
from tasks.jobs.invoke_patches import parse_repairs
from tasks.settings.settings import Settings
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import Trainer

logger = logging.getLogger(__name__)

# Starting an interpreter from a cold network disk.
_ANSWERS_WITHIN_S = 60.0
_MODULE = "worker.trainer.invoke"
_OURS = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Installed:
    """What is there of an engine.

    Attributes:
        versions: Library to version.
        faults: Why it cannot be used; none where it can.
        remedy: What to do about that.
    """

    versions: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether jobs can be trained with it."""
        return not self.problems


def find_diffusers() -> Installed:
    """Our own engine, in this interpreter's environment."""
    versions, problems = {}, []
    for name in _OURS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            problems.append(f"{name} is not installed")
    remedy = "pip install 'training-worker[train]' where GPU workers run" if problems else ""
    return Installed(versions, tuple(problems), remedy)


def find_invoke(python: Path | None) -> Installed:
    """The library's engine, in the interpreter that is meant for it."""
    guide = "see docs/guides/invoke-training.md"
    if python is None:
        problem = "TRAINING_INVOKE_PYTHON names no interpreter"
        return Installed(problems=(problem,), remedy=f"to train with it, {guide}")
    try:
        done = subprocess.run(
            [str(python), "-P", "-m", f"{_MODULE}.describe"],
            env=invoke_environment(dict(os.environ)),
            capture_output=True,
            text=True,
            timeout=_ANSWERS_WITHIN_S,
            check=True,
        )
        found = json.loads(done.stdout)
        problems = tuple(f"{python}: {problem}" for problem in found["errors"])
        return Installed(found["versions"], problems, guide if problems else "")
    except subprocess.CalledProcessError as error:
        problem = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        problem = str(error)
    return Installed(problems=(f"{python} cannot be used: {problem}",), remedy=guide)


def installed(settings: Settings) -> dict[Engine, Installed]:
    """What is there of each engine."""
    return {DIFFUSERS: find_diffusers(), INVOKE: find_invoke(settings.invoke_python)}


def invoke_command(settings: Settings) -> tuple[str, ...]:
    """What starts that engine's trainer."""
    return (str(settings.invoke_python), "-P", "-m", _MODULE)


def invoke_environment(env: dict[str, str]) -> dict[str, str]:
    """An environment in which the other interpreter finds this package, wherever it runs from.

    A folder of installed packages is never handed on: its torch is not that interpreter's.
    """
    root = Path(worker.__file__).parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return {key: value for key, value in env.items() if key != "PYTHONPATH"}
    return {**env, "PYTHONPATH": str(root)}


class EngineTrainers:
    """Gives each request to its engine's trainer: the ``Trainer`` of ``tasks.stages.worker_context``.

    Args:
        own: Of engine ``diffusers``, whose process is kept between requests.
        invoke: Of engine ``invoke-training``.
        repairs: Which of that library's faults are repaired.
    """

    def __init__(self, own: Trainer, invoke: Trainer, repairs: str) -> None:
        self._own = own
        self._invoke = invoke
        self._repairs = tuple(sorted(parse_repairs(repairs)))

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request to its end; see ``tasks.stages.worker_context.Trainer``."""
        trainer = self._own
        if request.engine == INVOKE:
            # What the kept process has on the GPU is in the way.
            self._own.close()
            trainer = self._invoke
            request = request.model_copy(update={"repairs": self._repairs})
        return trainer.run(request, on_event=on_event, stop_requested=stop_requested)

    def close(self) -> None:
        """End what is kept for later requests."""
        self._own.close()
        self._invoke.close()
