"""Faults inside processes that have this folder in their PYTHONPATH.

CLOCK_OFFSET_FILE is a file of the seconds by which ``time.time`` is ahead; without the file the
time is right. It may change while they run, and the clock jumps. SIGUSR2 ends the thread that
ENDING_THREAD names.
"""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

_offset_file = os.environ.get("CLOCK_OFFSET_FILE")
_ending_thread = os.environ.get("ENDING_THREAD")
_right_time = time.time


def _wrong_time() -> float:
    try:
        return _right_time() + float(Path(str(_offset_file)).read_text("ascii") or 0)
    except FileNotFoundError:
        return _right_time()


def _end_thread(_signal: int, _frame: FrameType | None) -> None:
    for thread in threading.enumerate():
        if thread.name == _ending_thread and thread.ident is not None:
            ended = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(*ended)


if _offset_file:
    time.time = _wrong_time
if _ending_thread:
    signal.signal(signal.SIGUSR2, _end_thread)
