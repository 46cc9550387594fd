"""What NVIDIA's driver tells of this machine's GPUs.

Knows NVML; must not know memory classes, settings or jobs. In MIG mode a card runs nothing itself:
its instances are the devices, each with memory and UUID of its own.

``python -m worker.gpu.nvml`` prints them as JSON, for processes that must not load the driver.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pynvml

from routing.classes import MIB
from tasks.state.workers import GpuStats

T = TypeVar("T")

# What an application's own error raises: the card is well, and the next job may have it. The
# others are the driver's or the card's. As NVIDIA's device plugin for Kubernetes sorts them.
_APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
_NO_INSTANCE = 0xFFFFFFFF


class DriverError(Exception):
    """There is a driver, and it does not do what it is asked to."""


@dataclass(frozen=True)
class Device:
    """A card, or a MIG instance of one.

    Attributes:
        index: The card's, in the order of ``nvidia-smi``.
        uuid: The device's own; empty where the driver cannot tell.
        name: The product's name.
        total_mib: Its memory.
        free_mib: What of it is free.
        mig: It is a MIG instance.
        compute_capability: Such as (8, 0); bfloat16 needs 8. None where the driver does not tell.
        ecc: Whether its memory corrects errors.
        processes: Those that compute on it, as far as the driver tells: id, as the host counts,
            to the MiB that it holds.
        fault: Why it cannot be used.
    """

    index: int
    uuid: str = ""
    name: str = ""
    total_mib: int = 0
    free_mib: int = 0
    mig: bool = False
    compute_capability: tuple[int, int] | None = None
    ecc: bool | None = None
    processes: dict[int, int | None] = field(default_factory=dict)
    problem: str | None = None


def devices() -> list[Device]:
    """What the driver reports; nothing where there is no driver.

    Raises:
        DriverError: The driver does not answer.
    """
    with _driver() as there:
        if not there:
            return []
        return [device for i in range(pynvml.nvmlDeviceGetCount()) for device in _card(i)]


def driver_version() -> str:
    """The driver's version; empty where it does not tell.

    Raises:
        DriverError: The driver does not answer.
    """
    with _driver() as there:
        if not there:
            return ""
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError_FunctionNotFound:
            return ""


def figures(uuid: str) -> GpuStats:
    """What the driver tells of a device now; call it where a driver that hangs holds up nothing.

    Raises:
        DriverError: The driver does not tell.
    """
    with _driver() as there, _told():
        if not there:
            raise DriverError("there is no NVIDIA driver")
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        rates = _or_none(pynvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = _or_none(_temperature, handle)
    return GpuStats(
        memory_bytes=memory.total,
        used_bytes=memory.used,
        utilization=None if rates is None else rates.gpu / 100,
        temperature_c=temperature,
    )


def _temperature(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


class XidListener:
    """Hears the errors that the driver reports of a device (XIDs), for as long as it lives.

    Raises:
        DriverError: The driver does not report any of this device.
    """

    def __init__(self, uuid: str) -> None:
        with _told():
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._instance = _NO_INSTANCE
            if pynvml.nvmlDeviceIsMigDeviceHandle(handle):
                self._instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
                handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            self._set = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)

    def heard(self) -> int | None:
        """An error since the last call that makes the device unfit; None where there was none.

        Raises:
            DriverError: The driver does not answer.
        """
        while True:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
            except pynvml.NVMLError_Timeout:
                return None
            except pynvml.NVMLError as error:
                raise DriverError(str(error)) from error
            ours = event.gpuInstanceId in (self._instance, _NO_INSTANCE)
            if ours and event.eventData not in _APPLICATION_XIDS:
                return int(event.eventData)


@contextmanager
def _driver() -> Iterator[bool]:
    """Whether there is a driver; it is let go at the end."""
    with _told():
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            yield False
            return
        try:
            yield True
        finally:
            pynvml.nvmlShutdown()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise DriverError(f"the NVIDIA driver does not answer: {error}") from error


def _card(index: int) -> Iterator[Device]:
    """The card, or its MIG instances; one that has failed does not hide the others."""
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        for handle in _instances(card):
            yield _described(index, card, handle)
    except pynvml.NVMLError as error:
        yield Device(index, name=f"GPU {index}", problem=str(error))


def _instances(card: Any) -> list[Any]:
    mode = _or_none(pynvml.nvmlDeviceGetMigMode, card)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [card]
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number))
        except pynvml.NVMLError_NotFound:
            continue
    return found


def _described(index: int, card: Any, handle: Any) -> Device:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    processes = _or_none(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or []
    ecc = _or_none(pynvml.nvmlDeviceGetEccMode, card)
    name = _or_none(pynvml.nvmlDeviceGetName, handle) or pynvml.nvmlDeviceGetName(card)
    return Device(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=name,
        total_mib=memory.total // MIB,
        free_mib=memory.free // MIB,
        mig=handle is not card,
        # Instances do not tell these two of themselves.
        compute_capability=_or_none(pynvml.nvmlDeviceGetCudaComputeCapability, card),
        ecc=None if ecc is None else bool(ecc[0]),
        processes={
            process.pid: None if process.usedGpuMemory is None else process.usedGpuMemory // MIB
            for process in processes
        },
    )


def _or_none(ask: Callable[[Any], T], handle: Any) -> T | None:
    """What some cards, drivers or MIG instances do not tell."""
    try:
        return ask(handle)
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_InvalidArgument,
    ):
        return None


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps([asdict(device) for device in devices()]))
    except DriverError as error:
        sys.exit(str(error))
