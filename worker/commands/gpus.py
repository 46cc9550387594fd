"""``training-worker gpus``."""

from dataclasses import asdict

from rich.table import Table

from routing.queues import served_queues
from tasks.settings import Settings
from worker.gpus import find_gpus
from worker.output import print_json, stdout


def run(settings: Settings, *, json: bool) -> None:
    """List this machine's GPUs and their memory classes."""
    gpus = find_gpus(settings.gpus)
    if json:
        print_json([{**asdict(gpu), "memory_class": str(gpu.memory_class)} for gpu in gpus])
        return
    if not gpus:
        stdout.print("no NVIDIA GPU here; 'up' emulates one on the CPU")
        return
    table = Table("uuid", "name", "MiB", "class", "serves")
    for gpu in gpus:
        served = ", ".join(served_queues(gpu.memory_class)) if gpu.memory_class else "nothing"
        memory = "" if gpu.emulated else str(gpu.memory_mib)
        table.add_row(gpu.uuid, gpu.name, memory, str(gpu.memory_class or "too small"), served)
    stdout.print(table)
