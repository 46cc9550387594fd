"""Locks by name that hold among all processes, on all hosts, that share a folder.

They are byte ranges of one file (``lockf``), which NFS and other shared file systems know. The
system releases those of a process that ends.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

# Positions of the largest file that every system has.
_POSITIONS = 2**62


class FolderLocks:
    """Locks by name.

    Args:
        path: The file; it stays empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Closing any descriptor of the file would release all locks of this process.
        self._descriptor: int | None = None
        self._held: set[str] = set()
        self._changed = Condition()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for a lock and hold it in the context."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._held)
            self._held.add(name)
        try:
            fcntl.lockf(self._file(), fcntl.LOCK_EX, 1, _position(name))
            yield
        finally:
            self._release(name)

    @contextmanager
    def try_hold(self, name: str) -> Iterator[bool]:
        """Hold a lock in the context, and yield whether that was possible."""
        with self._changed:
            is_free = name not in self._held
            if is_free:
                self._held.add(name)
        if not is_free:
            yield False
            return
        try:
            yield self._try_lock(name)
        finally:
            self._release(name)

    def _try_lock(self, name: str) -> bool:
        try:
            fcntl.lockf(self._file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _position(name))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _release(self, name: str) -> None:
        try:
            fcntl.lockf(self._file(), fcntl.LOCK_UN, 1, _position(name))
        finally:
            with self._changed:
                self._held.discard(name)
                self._changed.notify_all()

    def _file(self) -> int:
        with self._changed:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            return self._descriptor


def _position(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _POSITIONS
