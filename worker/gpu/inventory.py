"""The GPUs of this machine, as their driver reports them, or as an operator declares them."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from routing.classes import MemoryClass, class_for
from worker.errors import InventoryError
from worker.gpu.nvml import Device, DriverError, list_devices

AUTO = "auto"

# NVIDIA's Ampere is the first architecture with kernels for bfloat16. Older ones emulate it, take
# five to ten times as long and much more memory.
_BFLOAT16_CAPABILITY = (8, 0)
# A kernel (sm) runs on its own architecture and later ones of the same major number; code that the
# driver compiles (compute) on all later ones. With an f the latter is as the former; with an a,
# either runs on its own only.
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
_TORCH = """
import json, torch
print(json.dumps({"cuda": torch.version.cuda, "architectures": torch.cuda.get_arch_list()}))
"""
# Enough to import PyTorch from a cold network disk.
_TORCH_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class TorchBuild:
    """An interpreter's PyTorch.

    Attributes:
        cuda: The version of CUDA that it was built for; None for the CPU.
        architectures: What it has kernels for (``sm_80``); empty if it does not report it.
    """

    cuda: str | None
    architectures: tuple[str, ...]


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

    @property
    def has_bfloat16(self) -> bool | None:
        """Whether it has kernels for bfloat16; None if its driver does not report it."""
        capability = self.device.compute_capability if self.device is not None else None
        return None if capability is None else capability >= _BFLOAT16_CAPABILITY


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


@cache
def torch_build(python: str = sys.executable) -> TorchBuild | None:
    """Return an interpreter's PyTorch; None without one.

    Queries it in a separate process: workers never import PyTorch.
    """
    command = [python, "-P", "-c", _TORCH]
    try:
        query = subprocess.run(
            command, capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=True
        )
        answer = json.loads(query.stdout.splitlines()[-1])
        return TorchBuild(answer["cuda"], tuple(answer["architectures"]))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return None


def why_unsupported(capability: Sequence[int] | None, build: TorchBuild | None) -> str | None:
    """Return why a PyTorch cannot train on a GPU; None if it can, or nothing is known.

    Args:
        capability: The GPU's compute capability, such as (8, 0).
        build: The PyTorch.
    """
    if capability is None:
        return None
    found = f"it has compute capability {'.'.join(map(str, capability))}"
    architectures = build.architectures if build is not None else ()
    if architectures and not any(_has_kernels(name, *capability) for name in architectures):
        return f"{found}, and the installed PyTorch has kernels for {', '.join(architectures)} only"
    if tuple(capability) < _BFLOAT16_CAPABILITY:
        needed = ".".join(map(str, _BFLOAT16_CAPABILITY))
        return f"{found}; jobs compute in bfloat16, which needs {needed} (Ampere) or higher"
    return None


def why_untrainable(gpu: Gpu, python: str = sys.executable) -> str | None:
    """Return why an interpreter's PyTorch cannot train on a healthy GPU; None if it can."""
    if gpu.device is None:
        return None
    return why_unsupported(gpu.device.compute_capability, torch_build(python))


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


def _has_kernels(architecture: str, major: int, minor: int) -> bool:
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        return False
    kind, built_for, only = match[1], (int(match[2]), int(match[3])), match[4]
    if only == "a":
        return built_for == (major, minor)
    is_portable = kind == "compute" and not only
    return built_for <= (major, minor) and (is_portable or built_for[0] == major)


def _split(text: str) -> list[str]:
    return [entry for entry in re.split(r"[,\s]+", text) if entry]
