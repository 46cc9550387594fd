"""GPU memory: given back, and its peak measured."""

import gc
from pathlib import Path
from typing import Protocol

import torch


def release_memory() -> None:
    """Give the memory of what was just deleted or moved away back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class MemoryMeter(Protocol):
    """Measures the peak of a run's memory."""

    def reset(self) -> None:
        """Forget the peak so far."""
        ...

    def peak_bytes(self) -> int:
        """The most memory held since ``reset``."""
        ...

    def outside_bytes(self) -> int:
        """What is taken beside it and belongs to it: CUDA's context."""
        ...


class CudaMeter:
    """What PyTorch's allocator holds of the GPU."""

    def reset(self) -> None:
        """Forget the peak so far."""
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """The most that it held, used or not: nobody else could have had it."""
        return torch.cuda.max_memory_reserved()

    def outside_bytes(self) -> int:
        """What is taken of the GPU beside it: CUDA's context, on a GPU without other users."""
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()


class HostMeter:
    """What this process holds of main memory, as Linux counts it (``VmHWM``): on the CPU."""

    def reset(self) -> None:
        """Forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5", "ascii")

    def peak_bytes(self) -> int:
        """The most that was resident."""
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        [peak] = [line for line in lines if line.startswith("VmHWM:")]
        return int(peak.split()[1]) * 1024

    def outside_bytes(self) -> int:
        """Nothing: what is resident is all there is."""
        return 0
