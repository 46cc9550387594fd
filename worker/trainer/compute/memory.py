"""GPU memory: released, and its peak measured; and errors of the GPU."""

import gc
from pathlib import Path
from typing import Protocol

import torch

from tasks.errors import ErrorCode
from tasks.stages.cuda_errors import find_cuda_error


def find_gpu_error(error: RuntimeError) -> tuple[ErrorCode, str] | None:
    """Return the code and the text of an error of the GPU; None if it is not one.

    Its code is ``OUT_OF_MEMORY``; or ``GPU_FAILED``, after which the process can no longer use the
    GPU.
    """
    first_line = str(error).partition("\n")[0]
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return ErrorCode.OUT_OF_MEMORY, first_line
    found = find_cuda_error(str(error))
    if (found is None or found[0] != ErrorCode.GPU_FAILED) and not _is_usable():
        return ErrorCode.GPU_FAILED, first_line
    return found


def _is_usable() -> bool:
    """Return whether the GPU, if this process uses one, still answers it."""
    try:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
    except RuntimeError as error:
        found = find_cuda_error(str(error))
        return found is not None and found[0] == ErrorCode.OUT_OF_MEMORY
    return True


def release_memory() -> None:
    """Return the memory of deleted and moved tensors to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class MemoryMeter(Protocol):
    """Measures the peak of a run's memory."""

    def reset(self) -> None:
        """Forget the peak so far."""
        ...

    def peak_bytes(self) -> int:
        """Return the most memory held since ``reset``."""
        ...

    def outside_bytes(self) -> int:
        """Return the memory that the run needs beside its tensors: CUDA's context."""
        ...


class CudaMeter:
    """The memory that PyTorch's allocator holds of the GPU."""

    def reset(self) -> None:
        """Forget the peak so far."""
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Return the most that it held, used or not: no other process could use it."""
        return torch.cuda.max_memory_reserved()

    def outside_bytes(self) -> int:
        """Return the GPU's other memory in use: CUDA's context, if this process is alone there."""
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()


class HostMeter:
    """The main memory of this process, by Linux's ``VmHWM``: for runs on the CPU."""

    def reset(self) -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5", "ascii")

    def peak_bytes(self) -> int:
        """Return the most that was resident."""
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        [peak] = [line for line in lines if line.startswith("VmHWM:")]
        return int(peak.split()[1]) * 1024

    def outside_bytes(self) -> int:
        """Return 0: resident memory includes everything."""
        return 0
