"""The GPUs of this machine, as their driver reports them, or as an operator declares them."""

import re
from dataclasses import dataclass

from routing.classes import MemoryClass, class_for
from worker.errors import InventoryError
from worker.gpu.nvml import Device, DriverError, devices

AUTO = "auto"


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU.

    Attributes:
        uuid: What the worker is pinned to.
        name: The product's name.
        memory_mib: Its memory as the driver reports it; 0 where it is emulated.
        memory_class: None where it is below every class.
        device: All that the driver tells of it; None where it is declared, and its jobs compute on
            the CPU.
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
    """The declared GPUs, or those that the driver reports; none without a driver.

    Args:
        declared: ``TRAINING_GPUS``.
        visible: ``CUDA_VISIBLE_DEVICES``, which leaves out the others.

    Raises:
        InventoryError: A declaration is none, or the driver does not answer.
    """
    return declared_gpus(declared) if declared is not None else _driver_gpus(visible)


def declared_gpus(declaration: str) -> list[Gpu]:
    """Emulated GPUs from a list of classes such as ``40gb,24gb``.

    Raises:
        InventoryError: An entry is no memory class.
    """
    known = {str(memory_class): memory_class for memory_class in MemoryClass}
    gpus = []
    for number, entry in enumerate(filter(None, re.split(r"[,\s]+", declaration))):
        memory_class = known.get(entry.lower())
        if memory_class is None:
            raise InventoryError(
                f"TRAINING_GPUS: {entry!r} is no memory class; the classes are {', '.join(known)}"
            )
        uuid = f"EMULATED-{memory_class}-{number}"
        gpus.append(Gpu(uuid, f"emulated {memory_class}", 0, memory_class))
    return gpus


def chosen_gpu(which: str, declared: str | None, visible: str | None = None) -> Gpu:
    """One of this machine's GPUs.

    Args:
        which: Its UUID; or ``auto`` for the only one, such as a container has.
        declared: As in ``find_gpus``.
        visible: As in ``find_gpus``.

    Raises:
        InventoryError: It is not there, or too small for any class; or there are several.
    """
    gpus = find_gpus(declared, visible)
    there = ", ".join(gpu.uuid for gpu in gpus) or "none"
    if which == AUTO and len(gpus) != 1:
        raise InventoryError(f"--gpu auto is for one GPU, and there is: {there}")
    gpu = next((gpu for gpu in gpus if which in (gpu.uuid, AUTO)), None)
    if gpu is None:
        raise InventoryError(f"there is no GPU {which} here; there is: {there}")
    uuid = gpu.uuid
    if gpu.problem is not None:
        raise InventoryError(f"GPU {uuid} cannot be used: {gpu.problem}")
    if gpu.memory_class is None:
        raise InventoryError(
            f"GPU {uuid} has {gpu.memory_mib} MiB, less than the smallest class needs "
            f"({min(MemoryClass).floor_mib} MiB)"
        )
    return gpu


def _driver_gpus(visible: str | None) -> list[Gpu]:
    try:
        there = devices()
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
        for device in (there if visible is None else _visible(there, visible))
    ]


def _visible(there: list[Device], visible: str) -> list[Device]:
    """What ``CUDA_VISIBLE_DEVICES`` names: indices as ``nvidia-smi`` counts, or starts of UUIDs."""
    chosen: list[Device] = []
    for entry in filter(None, re.split(r"[,\s]+", visible)):
        if entry == "-1":  # CUDA's own word for "none from here on"
            break
        found = [
            device
            for device in there
            if (device.index == int(entry) if entry.isdecimal() else device.uuid.startswith(entry))
        ]
        if not found:
            raise InventoryError(f"CUDA_VISIBLE_DEVICES: there is no GPU {entry} here")
        chosen += [device for device in found if device not in chosen]
    return chosen
