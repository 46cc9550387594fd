"""``training-worker worker``."""

import logging
from importlib.util import find_spec
from pathlib import Path

from routing.engines import DIFFUSERS, INVOKE, Engine
from routing.queues import CPU_QUEUE, served_queues
from tasks.errors import InvalidJobError, NotInstalledError, Problem
from tasks.settings.settings import Settings
from worker.cli.client import broker_url
from worker.gpu.inventory import choose_gpu
from worker.supervision.engines import find_invoke
from worker.worker import run_worker

logger = logging.getLogger(__name__)


def run(
    settings: Settings,
    *,
    queues: str | None,
    gpu: str | None,
    strict: bool,
    name: str | None,
    exit_when_idle: float | None,
    ready_file: Path | None,
) -> int:
    """Run one worker process until it is stopped."""
    url = broker_url(settings)
    card = choose_gpu(gpu, settings.gpus, settings.cuda_visible_devices) if gpu else None
    engines: tuple[Engine, ...] = ()
    possible: tuple[str, ...] = (CPU_QUEUE,)
    if card and card.memory_class is not None:
        engines = _engines(settings)
        possible = served_queues(card.memory_class, engines=engines)
    if queues is not None:
        served = tuple(queue.strip() for queue in queues.split(","))
        known = ", ".join(possible)
        who = f"GPU {card.uuid}" if card else "a worker without --gpu"
        unserved = [queue for queue in served if queue not in possible]
        if unserved:
            problems = [
                Problem("--queues", f"{who} cannot serve {q!r}, only {known}") for q in unserved
            ]
            raise InvalidJobError(problems)
    elif strict and card and card.memory_class is not None:
        served = served_queues(card.memory_class, strict=True, engines=engines)
    else:
        served = possible
    if card is not None and find_spec("torch") is None:
        raise NotInstalledError("PyTorch", "train")
    label = name or (f"gpu-{card.memory_class}-{card.uuid[-8:]}" if card else "cpu")
    return run_worker(
        settings,
        url,
        name=label,
        queues=served,
        gpu=card,
        engines=engines,
        ready_file=ready_file,
        exit_when_idle_s=exit_when_idle,
    )


def _engines(settings: Settings) -> tuple[Engine, ...]:
    """The engines that jobs can be trained with here."""
    if settings.invoke_python is None:
        return (DIFFUSERS,)
    found = find_invoke(settings.invoke_python)
    for problem in found.problems:
        logger.warning("no jobs of engine %s: %s; %s", INVOKE, problem, found.remedy)
    return (DIFFUSERS, INVOKE) if found.is_usable else (DIFFUSERS,)
