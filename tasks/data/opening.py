"""Opening of files whose folders others may change: the checked file is opened, or none.

A path is resolved and checked first, and opened later. A program that may write in the
folder could put a link there in between, and have a worker read what only the worker may.
"""

import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


class MovedError(OSError):
    """A path leads elsewhere than it did when it was resolved."""


def open_resolved(path: Path) -> BufferedReader:
    """Open a regular file by a path that ``Path.resolve`` returned.

    Raises:
        MovedError: Something in the path is a link now.
        OSError: The file cannot be read, or is no regular file.
    """
    # Without O_NONBLOCK, a pipe would be waited for.
    descriptor = _open(path, os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_resolved(path: Path) -> bytes:
    """Return the bytes of a regular file; see ``open_resolved``.

    Raises:
        OSError: The file cannot be read.
    """
    with open_resolved(path) as file:
        return file.read()


@contextmanager
def scan_resolved(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Yield the entries of a folder, by a path that ``Path.resolve`` returned.

    Raises:
        MovedError: Something in the path is a link now.
        OSError: The folder cannot be read.
    """
    descriptor = _open(folder, os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with os.scandir(descriptor) as entries:
            yield entries
    finally:
        os.close(descriptor)


def names_below(folder: Path, enters: Callable[[str], bool]) -> Iterator[str]:
    """Yield the names of all files below a folder, relative to it.

    Of a subfolder that is not entered, which links are not, its name and a slash are yielded.

    Args:
        folder: A path that ``Path.resolve`` returned.
        enters: Returns whether a subfolder is entered.

    Raises:
        MovedError: Something in the path is a link now.
        OSError: The folder cannot be read.
    """
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            with scan_resolved(folder / below) as entries:
                found = [(it.name, _is_folder(it), it.is_symlink()) for it in entries]
        except OSError:
            if not below:
                raise
            yield f"{below}/"
            continue
        for name, is_folder, is_link in found:
            path = f"{below}/{name}" if below else name
            if not is_folder:
                yield path
            elif is_link or not enters(path):
                yield f"{path}/"
            else:
                folders.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    if _path_of(descriptor) != os.fspath(path):
        os.close(descriptor)
        raise MovedError("its path was changed meanwhile")
    return descriptor


def _path_of(descriptor: int) -> str:
    """Return the path of an open file, without links."""
    if sys.platform == "darwin":
        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
