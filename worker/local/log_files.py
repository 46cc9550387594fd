"""The log files of a local fleet: one for each process, rotated, besides the terminal.

A process writes its log to a pipe. A thread copies it, line by line, to the terminal and to the
file, so that the file also has what Python, CUDA or a trainer prints as it crashes.
"""

import logging
import sys
import threading
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_OLDER_FILES = 4
# A longer line is split: it must not fill the memory.
_MAX_LINE_BYTES = 64 * 1024
# What a stopped process has written is in the pipe; only its children could keep that open.
_CLOSE_WITHIN_S = 2.0


class LogFiles:
    """The files, ``NAME.log`` in a folder.

    Args:
        folder: Their folder, made with the first of them.
        max_bytes: The maximum size of each; 0 writes none.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._files: dict[str, _LogFile] = {}
        self._threads: list[threading.Thread] = []

    def copy(self, name: str, log: IO[bytes]) -> None:
        """Copy what a process writes to the terminal and to its file, until it has ended.

        Args:
            name: The process's name; a restarted one has the same.
            log: The pipe's end.
        """
        file = self._file(name) if self._max_bytes else None
        thread = threading.Thread(
            target=_copy, args=(log, file), name=f"the log of {name}", daemon=True
        )
        thread.start()
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def add_own(self, name: str) -> None:
        """Write this process's own log to a file, too.

        Raises:
            OSError: The folder cannot be made.
        """
        if self._max_bytes:
            self._folder.mkdir(parents=True, exist_ok=True)
            root = logging.getLogger()
            file = self._file(name)
            file.setFormatter(root.handlers[0].formatter)
            root.addHandler(file)

    def close(self) -> None:
        """Wait until all logs are copied, and close the files."""
        for thread in self._threads:
            thread.join(_CLOSE_WITHIN_S)
        for file in self._files.values():
            logging.getLogger().removeHandler(file)
            file.close()

    def _file(self, name: str) -> "_LogFile":
        if name not in self._files:
            self._files[name] = _LogFile(self._folder / f"{name}.log", self._max_bytes)
        return self._files[name]


def _copy(log: IO[bytes], file: "_LogFile | None") -> None:
    with log:
        while line := log.readline(_MAX_LINE_BYTES):
            # A closed terminal takes nothing; the process must not wait for it.
            with suppress(OSError, ValueError):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
            if file is not None:
                text = line.decode("utf-8", "backslashreplace").removesuffix("\n")
                file.handle(logging.makeLogRecord({"msg": text}))


class _LogFile(RotatingFileHandler):
    """A rotated file; one that cannot be written is given up, with a warning."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(
            path, maxBytes=max_bytes, backupCount=_OLDER_FILES, encoding="utf-8", delay=True
        )
        self._is_given_up = False

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if not self._is_given_up:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Give the file up; the base class would print a traceback for each line."""
        self._is_given_up = True
        logger.warning("cannot write %s: %s", self.baseFilename, sys.exception())
