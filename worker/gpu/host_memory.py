"""Host memory: this machine's system memory, compared with what its workers' jobs need."""

import re
from pathlib import Path

import psutil

from routing.classes import MemoryClass
from routing.policy import system_memory_gb, types_on
from routing.queues import INVOKE, gpu_queue

# A container's control group, version 2: its limit, its use, and what of that is page cache.
_GROUP = Path("/sys/fs/cgroup")
_LIMIT = _GROUP / "memory.max"
_CACHED = re.compile(r"^file (\d+)$", re.MULTILINE)
# As memory is sold; firmware and kernel take less than the difference to 2**30.
_GB = 1e9


def host_memory_bytes() -> int:
    """Return the memory that processes may use here."""
    total: int = psutil.virtual_memory().total
    try:
        limit = _LIMIT.read_text("ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def available_memory_bytes() -> int:
    """Return the memory that can be had here without swapping: page cache counts as free."""
    available: int = psutil.virtual_memory().available
    try:
        limit = int(_LIMIT.read_text("ascii"))
        used = int((_GROUP / "memory.current").read_text("ascii"))
        cached = _CACHED.search((_GROUP / "memory.stat").read_text("ascii"))
    except (OSError, ValueError):
        return available
    return min(available, limit - used + (int(cached[1]) if cached else 0))


def memory_shortage(memory_class: MemoryClass, total_bytes: int) -> str | None:
    """Return the job types that this machine has too little memory for; None if it has enough.

    Args:
        memory_class: The largest class that its worker serves.
        total_bytes: Its memory.
    """
    short_of = [
        f"{kind} ({system_memory_gb(kind)} GB)"
        for kind in types_on(memory_class)
        if system_memory_gb(kind) * _GB > total_bytes
    ]
    if not short_of:
        return None
    available = f"{total_bytes / _GB:.1f} GB of system memory"
    return f"{available}, less than the need of {', '.join(short_of)}"


def worker_memory_shortage(queues: tuple[str, ...]) -> str | None:
    """Return ``memory_shortage`` of this machine for the largest class that a worker serves."""
    served = (c for c in MemoryClass if {gpu_queue(c), gpu_queue(c, INVOKE)}.intersection(queues))
    return memory_shortage(max(served), host_memory_bytes())
