"""``training-worker worker``."""

from importlib.util import find_spec
from pathlib import Path

from routing.queues import CPU_QUEUE, served_queues
from tasks.errors import Fault, InvalidJobError, NotInstalledError
from tasks.settings import Settings
from worker.app import run_worker
from worker.client import broker_url
from worker.gpus import chosen_gpu


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
    card = chosen_gpu(gpu, settings.gpus, settings.cuda_visible_devices) if gpu else None
    possible = (
        served_queues(card.memory_class) if card and card.memory_class is not None else (CPU_QUEUE,)
    )
    if queues is not None:
        served = tuple(queue.strip() for queue in queues.split(","))
        known = ", ".join(possible)
        who = f"GPU {card.uuid}" if card else "a worker without --gpu"
        unserved = [queue for queue in served if queue not in possible]
        if unserved:
            faults = [
                Fault("--queues", f"{who} cannot serve {q!r}, only {known}") for q in unserved
            ]
            raise InvalidJobError(faults)
    else:
        served = possible[:1] if strict else possible
    if card is not None and find_spec("torch") is None:
        raise NotInstalledError("PyTorch", "train")
    label = name or (f"gpu-{card.memory_class}-{card.uuid[-8:]}" if card else "cpu")
    return run_worker(
        settings,
        url,
        name=label,
        queues=served,
        gpu=card,
        ready_file=ready_file,
        exit_when_idle_s=exit_when_idle,
    )
