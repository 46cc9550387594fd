"""GPU memory: released, and its peak measured."""

import gc
import re
from pathlib import Path
from typing import Protocol

import torch

# What cuBLAS, cuDNN, CUDA itself, pinned memory and bitsandbytes raise instead of OutOfMemoryError.
_OUT_OF_MEMORY = re.compile(r"out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether the GPU's memory was too small for a computation."""
    is_own = isinstance(error, torch.cuda.OutOfMemoryError)
    return is_own or _OUT_OF_MEMORY.search(str(error)) is not None


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
