"""This machine's system memory, against what the jobs that a worker may get should have."""

from pathlib import Path

import psutil

from routing.classes import MemoryClass
from routing.requirements import system_memory_gb, types_on

# A container's own limit: control groups, version 2.
_LIMIT = Path("/sys/fs/cgroup/memory.max")
# As memory is sold; what firmware and kernel keep of it is less than the difference to 2**30.
_GB = 1e9


def host_memory_bytes() -> int:
    """The memory that processes here may take."""
    total: int = psutil.virtual_memory().total
    try:
        limit = _LIMIT.read_text("ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def too_little_memory(memory_class: MemoryClass, total_bytes: int) -> str | None:
    """What this machine has too little memory for; None where it has enough.

    Args:
        memory_class: The largest class that its worker serves.
        total_bytes: What it has.
    """
    found = f"{total_bytes / _GB:.1f} GB of system memory"
    wanting = [
        f"{kind} ({system_memory_gb(kind)} GB)"
        for kind in types_on(memory_class)
        if system_memory_gb(kind) * _GB > total_bytes
    ]
    if not wanting:
        return None
    return f"{found}, less than is needed by {', '.join(wanting)}"
