"""The GPUs of this machine, as their driver reports them, or as an operator declares them."""

import re
from dataclasses import dataclass

import pynvml

from routing.classes import MIB, MemoryClass, class_for
from tasks.errors import ErrorCode, JobError


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU.

    Attributes:
        uuid: What the worker is pinned to.
        name: The product's name.
        memory_mib: Its memory as the driver reports it; 0 where it is emulated.
        memory_class: None where it is below every class.
        emulated: It is declared, and its jobs compute on the CPU.
    """

    uuid: str
    name: str
    memory_mib: int
    memory_class: MemoryClass | None
    emulated: bool = False


class InventoryError(JobError):
    """``TRAINING_GPUS`` is not an inventory, or a GPU is not in it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.NO_WORKER)


def find_gpus(declared: str | None) -> list[Gpu]:
    """The declared GPUs, or those that the driver reports; none without a driver.

    Raises:
        InventoryError: The declaration is not one.
    """
    return declared_gpus(declared) if declared is not None else _driver_gpus()


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
        gpus.append(Gpu(uuid, f"emulated {memory_class}", 0, memory_class, emulated=True))
    return gpus


def gpu_by_uuid(uuid: str, declared: str | None) -> Gpu:
    """One of this machine's GPUs.

    Raises:
        InventoryError: It is not there, or too small for any class.
    """
    gpus = find_gpus(declared)
    gpu = next((gpu for gpu in gpus if gpu.uuid == uuid), None)
    if gpu is None:
        there = ", ".join(gpu.uuid for gpu in gpus) or "none"
        raise InventoryError(f"there is no GPU {uuid} here; there is: {there}")
    if gpu.memory_class is None:
        raise InventoryError(
            f"GPU {uuid} has {gpu.memory_mib} MiB, less than the smallest class needs "
            f"({min(MemoryClass).floor_mib} MiB)"
        )
    return gpu


def _driver_gpus() -> list[Gpu]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no NVIDIA driver: a machine without GPUs
    try:
        handles = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handles += _instances(pynvml.nvmlDeviceGetHandleByIndex(index))
        return [_described(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _instances(handle: object) -> list[object]:
    """The card itself, or its MIG instances: a card in MIG mode runs nothing itself."""
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return [handle]
    if mode != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except pynvml.NVMLError_NotFound:
            continue
    return found


def _described(handle: object) -> Gpu:
    memory_mib = pynvml.nvmlDeviceGetMemoryInfo(handle).total // MIB
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_mib=memory_mib,
        memory_class=class_for(memory_mib),
    )
