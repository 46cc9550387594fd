"""The pages of a file in memory: counted, and dropped."""

import os
import subprocess
from pathlib import Path


def drop_pages(file: Path) -> None:
    """Drop a file's pages from memory."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(file: Path) -> int:
    """Return how much of a file is in memory, in whole pages."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(file)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout or 0)
