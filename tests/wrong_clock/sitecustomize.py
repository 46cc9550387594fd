"""Shifts ``time.time`` of processes that have this folder in their PYTHONPATH.

The file CLOCK_OFFSET_FILE holds the seconds; it may change while they run, and the clock jumps.
"""

import os
import time
from pathlib import Path

_path = os.environ.get("CLOCK_OFFSET_FILE")
_right_time = time.time


def _wrong_time() -> float:
    try:
        return _right_time() + float(Path(str(_path)).read_text("ascii") or 0)
    except FileNotFoundError:
        return _right_time()


if _path:
    time.time = _wrong_time
