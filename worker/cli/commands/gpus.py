"""``training-worker gpus``."""

from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from routing.queues import served_queues
from tasks.client import Client
from tasks.settings.settings import Settings
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout
from worker.gpu.inventory import Gpu, find_gpus

# The first architecture that computes in bfloat16.
_AMPERE = (8, 0)


def run(settings: Settings, *, fleet: bool, json: bool) -> None:
    """List this machine's GPUs, or the whole fleet's."""
    if fleet:
        _fleet(client_of(settings), json)
        return
    gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    if json:
        print_json([_document(gpu) for gpu in gpus])
    elif not gpus:
        stdout.print("no NVIDIA GPU here; 'up' emulates one on the CPU")
    else:
        table = Table("uuid", "name", "MiB", "free", "bf16", "ECC", "class", "serves")
        for gpu in gpus:
            table.add_row(*map(escape, _row(gpu)))
        stdout.print(table)


def _fleet(client: Client, json: bool) -> None:
    there = {name: it for name, it in client.present_workers().items() if it.gpu_uuid is not None}
    if json:
        print_json([{"worker": name, **it.model_dump(mode="json")} for name, it in there.items()])
        return
    table = Table("worker", "uuid", "name", "class", "serves", title=f"{len(there)} GPU worker(s)")
    for name, it in there.items():
        serves = f"quarantined: {it.quarantined}" if it.quarantined else ", ".join(it.queues)
        cells = (name, it.gpu_uuid or "", it.gpu_name or "", str(it.memory_class), serves)
        table.add_row(*map(escape, cells))
    stdout.print(table)


def _document(gpu: Gpu) -> dict[str, object]:
    return {
        **asdict(gpu),
        "memory_class": None if gpu.memory_class is None else str(gpu.memory_class),
        "emulated": gpu.emulated,
    }


def _row(gpu: Gpu) -> tuple[str, ...]:
    device = gpu.device
    if gpu.memory_class is None:
        serves, memory_class = "nothing", gpu.problem or "too small"
    else:
        serves, memory_class = ", ".join(served_queues(gpu.memory_class)), str(gpu.memory_class)
    if device is None:
        return gpu.uuid, gpu.name, "", "", "", "", memory_class, serves
    capability = device.compute_capability
    bf16 = "" if capability is None else "yes" if capability >= _AMPERE else "no"
    ecc = "" if device.ecc is None else "on" if device.ecc else "off"
    memory = (str(gpu.memory_mib), str(device.free_mib))
    return gpu.uuid, gpu.name, *memory, bf16, ecc, memory_class, serves
