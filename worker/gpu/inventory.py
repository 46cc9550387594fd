"""The GPUs of this machine, as their driver reports them, or as an operator declares them."""

import re
from dataclasses import dataclass

from routing.classes import MemoryClass, class_for
from worker.errors import InventoryError
from worker.gpu.nvml import Device, DriverError, list_devices

AUTO = "auto"


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU.

    Attributes:
        uuid: The worker is pinned to it.
        name: The product's name.
        memory_mib: Its memory as the driver reports it; 0 for an emulated GPU.
        memory_class: None for a GPU below every class.
        device: The driver's report; None for a declared GPU, whose jobs compute on the CPU.
    """

    uuid: str
    name: str
    memory_mib: int
    memory_class: MemoryClass | None
    device: Device | None = None

    @property
    def emulated(self) -> bool:
        """Whether its jobs compute on the CPU."""
        return self.device is None

    @property
    def problem(self) -> str | None:
        """Why it cannot be used."""
        return self.device.problem if self.device is not None else None


def find_gpus(declared: str | None, visible: str | None = None) -> list[Gpu]:
    """Return the declared GPUs, or those that the driver reports; none without a driver.

    Args:
        declared: The value of ``TRAINING_GPUS``.
        visible: The value of ``CUDA_VISIBLE_DEVICES``, which excludes all other GPUs.

    Raises:
        InventoryError: The declaration is invalid, or the driver does not answer.
    """
    return declared_gpus(declared) if declared is not None else _driver_gpus(visible)


def declared_gpus(declaration: str) -> list[Gpu]:
    """Return emulated GPUs for a list of classes such as ``40gb,24gb``.

    Raises:
        InventoryError: An entry is not a memory class.
    """
    classes = {str(memory_class): memory_class for memory_class in MemoryClass}
    gpus = []
    for number, entry in enumerate(_split(declaration)):
        memory_class = classes.get(entry.lower())
        if memory_class is None:
            raise InventoryError(
                f"TRAINING_GPUS: {entry!r} is not a memory class; use {', '.join(classes)}"
            )
        uuid = f"EMULATED-{memory_class}-{number}"
        gpus.append(Gpu(uuid, f"emulated {memory_class}", 0, memory_class))
    return gpus


def choose_gpu(uuid: str, declared: str | None, visible: str | None = None) -> Gpu:
    """Return one of this machine's GPUs.

    Args:
        uuid: Its UUID; or ``auto`` for the only one, as in a container.
        declared: As in ``find_gpus``.
        visible: As in ``find_gpus``.

    Raises:
        InventoryError: It is not on this machine, is unhealthy, or is too small for every class;
            or ``auto`` does not name a single one.
    """
    gpus = find_gpus(declared, visible)
    available = ", ".join(gpu.uuid for gpu in gpus) or "none"
    if uuid == AUTO and len(gpus) != 1:
        raise InventoryError(f"--gpu auto needs exactly one GPU; this machine has: {available}")
    gpu = next((gpu for gpu in gpus if uuid in (gpu.uuid, AUTO)), None)
    if gpu is None:
        raise InventoryError(f"this machine has no GPU {uuid}; it has: {available}")
    if gpu.problem is not None:
        raise InventoryError(f"GPU {gpu.uuid} cannot be used: {gpu.problem}")
    if gpu.memory_class is None:
        raise InventoryError(
            f"GPU {gpu.uuid} has {gpu.memory_mib} MiB, less than the smallest class needs "
            f"({min(MemoryClass).floor_mib} MiB)"
        )
    return gpu


def _driver_gpus(visible: str | None) -> list[Gpu]:
    try:
        devices = list_devices()
    except DriverError as error:
        raise InventoryError(str(error)) from error
    return [
        Gpu(
            uuid=device.uuid,
            name=device.name,
            memory_mib=device.total_mib,
            memory_class=class_for(device.total_mib),
            device=device,
        )
        for device in (devices if visible is None else _select_visible(devices, visible))
    ]


def _select_visible(devices: list[Device], visible: str) -> list[Device]:
    """Select by ``CUDA_VISIBLE_DEVICES``: indices in ``nvidia-smi``'s order, or UUID prefixes."""
    selected: list[Device] = []
    for entry in _split(visible):
        if entry == "-1":  # CUDA ends the list here
            break
        matches = [
            device
            for device in devices
            if (device.index == int(entry) if entry.isdecimal() else device.uuid.startswith(entry))
        ]
        if not matches:
            raise InventoryError(f"CUDA_VISIBLE_DEVICES: this machine has no GPU {entry}")
        selected += [device for device in matches if device not in selected]
    return selected


def _split(text: str) -> list[str]:
    return [entry for entry in re.split(r"[,\s]+", text) if entry]
