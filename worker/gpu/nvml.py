"""What NVIDIA's driver reports of this machine's GPUs, over NVML.

Independent of memory classes, settings and jobs. In MIG mode a card runs nothing itself: its
instances are the devices, each with its own memory and UUID.

``python -m worker.gpu.nvml`` prints the devices as JSON, for processes that must not load the
driver.
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

# Errors of an application: the card is healthy, and the next job may use it. All others are errors
# of the driver or the card. The list of NVIDIA's device plugin for Kubernetes.
_APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
_NO_INSTANCE = 0xFFFFFFFF


class DriverError(Exception):
    """A driver is installed and does not answer, or fails."""


@dataclass(frozen=True)
class Device:
    """A card, or a MIG instance of one.

    Attributes:
        index: The card's, in the order of ``nvidia-smi``.
        uuid: The device's UUID; empty where the driver does not report it.
        name: The product's name.
        total_mib: Its memory.
        free_mib: Its free memory.
        mig: Whether it is a MIG instance.
        compute_capability: Such as (8, 0); bfloat16 needs 8. None where it is not reported.
        ecc: Whether its memory corrects errors; None where it is not reported.
        processes: The processes that compute on it, as far as the driver reports them: id, as the
            host counts, to the MiB that it holds.
        problem: Why it cannot be used.
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


def list_devices() -> list[Device]:
    """Return the devices that the driver reports; none without a driver.

    Raises:
        DriverError: The driver does not answer.
    """
    with _driver() as is_installed:
        if not is_installed:
            return []
        return [device for i in range(pynvml.nvmlDeviceGetCount()) for device in _devices_of(i)]


def driver_version() -> str:
    """Return the driver's version; empty where it is not reported.

    Raises:
        DriverError: The driver does not answer.
    """
    with _driver() as is_installed:
        if not is_installed:
            return ""
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError_FunctionNotFound:
            return ""


def read_stats(uuid: str) -> GpuStats:
    """Return a device's current statistics. A driver that hangs blocks the caller.

    Raises:
        DriverError: The driver does not answer.
    """
    with _driver() as is_installed, _driver_errors():
        if not is_installed:
            raise DriverError("no NVIDIA driver is installed")
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        rates = _or_none(pynvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = _or_none(_temperature_c, handle)
    return GpuStats(
        memory_bytes=memory.total,
        used_bytes=memory.used,
        utilization=None if rates is None else rates.gpu / 100,
        temperature_c=temperature,
    )


class XidListener:
    """Receives the errors (XIDs) that the driver reports of a device.

    Raises:
        DriverError: The driver reports none of this device.
    """

    def __init__(self, uuid: str) -> None:
        with _driver_errors():
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._instance = _NO_INSTANCE
            if pynvml.nvmlDeviceIsMigDeviceHandle(handle):
                self._instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
                handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            self._set = pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)

    def poll(self) -> int | None:
        """Return an error since the last call that makes the device unhealthy; None without one.

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
            is_ours = event.gpuInstanceId in (self._instance, _NO_INSTANCE)
            if is_ours and event.eventData not in _APPLICATION_XIDS:
                return int(event.eventData)


@contextmanager
def _driver() -> Iterator[bool]:
    """Load the driver for a while; yield whether one is installed."""
    with _driver_errors():
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
def _driver_errors() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise DriverError(f"the NVIDIA driver does not answer: {error}") from error


def _devices_of(index: int) -> Iterator[Device]:
    """Yield a card, or its MIG instances. A card that failed does not hide the others."""
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        for handle in _handles(card):
            yield _read_device(index, card, handle)
    except pynvml.NVMLError as error:
        yield Device(index, name=f"GPU {index}", problem=str(error))


def _handles(card: Any) -> list[Any]:
    mode = _or_none(pynvml.nvmlDeviceGetMigMode, card)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [card]
    instances = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            instances.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number))
        except pynvml.NVMLError_NotFound:
            continue
    return instances


def _read_device(index: int, card: Any, handle: Any) -> Device:
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
        # Of the card: instances report neither capability nor ECC.
        compute_capability=_or_none(pynvml.nvmlDeviceGetCudaComputeCapability, card),
        ecc=None if ecc is None else bool(ecc[0]),
        processes={
            process.pid: None if process.usedGpuMemory is None else process.usedGpuMemory // MIB
            for process in processes
        },
    )


def _temperature_c(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _or_none(query: Callable[[Any], T], handle: Any) -> T | None:
    """Return what a query yields; None where this card, driver or MIG instance has no answer."""
    try:
        return query(handle)
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_InvalidArgument,
    ):
        return None


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps([asdict(device) for device in list_devices()]))
    except DriverError as error:
        sys.exit(str(error))
