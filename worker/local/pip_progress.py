"""Runs pip and shows how far it is: one line that changes on a terminal, else a line at times.

    python worker/local/pip_progress.py LOG PYTHON ARGUMENT...

``deploy/install.sh`` runs this file before anything is installed, so that it needs the standard
library only. PYTHON's pip gets the arguments; all of its output goes to LOG, and its end to
standard error if it fails.
"""

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

_LINE_EVERY_S = 15.0
_REDRAW_EVERY_S = 0.5
_LINES_OF_AN_ERROR = 15
# More than one line of the terminal cannot be drawn again.
_MAX_WIDTH = 100
_COLLECTING = re.compile(r"Collecting (\S+)")
_DOWNLOADING = re.compile(r"\s*Downloading (\S+?)(-[0-9]\S*)?( \([^)]*\))")
_UNREACHABLE = re.compile(r"after connection broken|Temporary failure in name resolution")
_INSTALLING = re.compile(r"Installing collected packages: (.*)")


class Progress:
    """What pip does, by its output."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._found: set[str] = set()
        self._doing = "starting"

    def read(self, line: str) -> None:
        """Take a line of pip's output into account."""
        if match := _COLLECTING.match(line):
            self._found.add(re.split(r"[<>=!~;\[ ]", match[1])[0].lower())
            self._doing = f"looking for {match[1]}"
        elif match := _DOWNLOADING.match(line):
            self._doing = f"downloading {match[1].rpartition('/')[2]}{match[3]}"
        elif match := _INSTALLING.match(line):
            count = len(match[1].split(","))
            self._doing = f"unpacking {count} packages, the last step"

    def text(self) -> str:
        """Return what pip does, how far it is, and since when."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        took = f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
        text = f"{took}: {len(self._found)} packages found, {self._doing}"
        # A package's name may have control characters.
        return "".join(filter(str.isprintable, text))


def run_pip(python: Path, arguments: Sequence[str], log: Path, out: TextIO = sys.stderr) -> int:
    """Run pip, show its progress and return its exit code.

    Args:
        python: The interpreter whose pip runs.
        arguments: Its arguments, such as ``install``.
        log: All of its output is appended there.
        out: Where the progress is shown.
    """
    options = ("--disable-pip-version-check", "--no-input", "--no-color")
    progress, ended = Progress(), threading.Event()
    shown = threading.Thread(target=_show, args=(progress, ended, out), daemon=True)
    lines: list[str] = []
    with log.open("a", encoding="utf-8") as kept:
        command = [str(python), "-m", "pip", *arguments, *options]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip:
            assert pip.stdout is not None
            shown.start()
            for line in pip.stdout:
                kept.write(line)
                progress.read(line)
                lines = [*lines[-_LINES_OF_AN_ERROR:], line]
    ended.set()
    shown.join()
    if pip.returncode:
        out.write("".join(lines) + f"pip failed ({pip.returncode}); all of its output: {log}\n")
        if any(map(_UNREACHABLE.search, lines)):
            out.write(
                "pip cannot reach the package index: check the network, the proxy and pip.conf\n"
            )
    return pip.returncode


def _show(progress: Progress, ended: threading.Event, out: TextIO) -> None:
    is_terminal = out.isatty()
    while not ended.wait(_REDRAW_EVERY_S if is_terminal else _LINE_EVERY_S):
        width = min(_MAX_WIDTH, shutil.get_terminal_size().columns - 1)
        text = f"  {progress.text()}"[:width]
        out.write(f"\r\x1b[K{text}" if is_terminal else f"{text}\n")
        out.flush()
    if is_terminal:
        out.write("\r\x1b[K")


if __name__ == "__main__":
    try:
        sys.exit(run_pip(Path(sys.argv[2]), sys.argv[3:], Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes")
