"""Servers that keep a download waiting: it ends in time, and at once if its job is cancelled."""

import fcntl
import itertools
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tasks.data.download import downloads, pace
from tasks.data.download.background import in_background
from tasks.data.download.downloads import Downloads
from tasks.data.download.protocol import DownloadError
from tasks.data.read_policy import ReadPolicy

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n"
TRICKLE_S = 0.05


class SlowServer:
    """Answers each connection with the bytes of an iterator, one piece at a time."""

    def __init__(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        self._pieces = pieces
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.closed = threading.Event()
        self.connected = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        self.closed.set()
        # A thread that still accepted might take the connections of the next server, which gets the
        # same descriptor.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            self.connected.set()
            try:
                for piece in self._pieces():
                    connection.sendall(piece)
                self.closed.wait()
            except OSError:
                return


def trickle(text: bytes) -> Iterator[bytes]:
    for byte in itertools.cycle(text):
        time.sleep(TRICKLE_S)
        yield bytes([byte])


def flood(text: bytes) -> Iterator[bytes]:
    while True:
        time.sleep(0.001)
        yield text


PIECES: dict[str, Callable[[], Iterator[bytes]]] = {
    "nothing": lambda: iter(()),
    "a trickle of headers": lambda: itertools.chain([HEAD], trickle(b"X-Name: value\r\n")),
    "endless interim responses": lambda: flood(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "endless headers": lambda: itertools.chain([HEAD], flood(b"X-Name: value\r\n" * 100)),
    "a trickle of the body": lambda: itertools.chain([HEAD + b"\r\n"], trickle(b"x")),
    "a trickle of chunks": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], trickle(b"1\r\nx\r\n")
    ),
    "a part of the body": lambda: iter([HEAD + b"\r\nhalf"]),
}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "HEADERS_S", 0.3)
    monkeypatch.setattr(pace, "WINDOW_S", 0.3)
    monkeypatch.setattr(downloads, "PAUSES_S", (0.0,))


@pytest.fixture(params=list(PIECES.values()), ids=list(PIECES))
def server(request: pytest.FixtureRequest) -> Iterator[SlowServer]:
    server = SlowServer(request.param)
    yield server
    server.close()


@pytest.mark.usefixtures("_impatient")
def test_a_slow_server_is_given_up(server: SlowServer, tmp_path: Path) -> None:
    kept = Downloads(tmp_path, ReadPolicy(hosts=frozenset({server.host})))
    began_s = time.monotonic()
    with pytest.raises(DownloadError, match="was interrupted 2 times") as caught:
        kept.fetch(f"http://{server.host}/a.zip")
    assert caught.value.retryable
    assert time.monotonic() - began_s < 10


@pytest.mark.usefixtures("_impatient")
def test_a_slow_file_of_a_steady_server_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MIN_BYTES_PER_S", 10)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    server = SlowServer(lambda: itertools.chain([head], trickle(b"x")))
    kept = Downloads(tmp_path, ReadPolicy(hosts=frozenset({server.host})))
    began_s = time.monotonic()
    assert kept.fetch(f"http://{server.host}/a.zip").read_bytes() == b"x" * 10
    assert time.monotonic() - began_s > pace.WINDOW_S
    server.close()


class CancelledError(Exception):
    """The test's job is cancelled."""


class Job:
    """A job that is cancelled by a call."""

    def __init__(self) -> None:
        self.cancelled_s: float | None = None

    def cancel(self) -> None:
        self.cancelled_s = time.monotonic()

    def check_stop(self) -> None:
        if self.cancelled_s is not None:
            raise CancelledError


def assert_ends_at_once(
    folder: Path, url: str, hosts: set[str], is_busy: Callable[[], bool]
) -> None:
    """Fetch a URL, cancel once the server or the system is busy with it, and check the time."""
    job = Job()
    kept = Downloads(folder, ReadPolicy(hosts=frozenset(hosts)), job.check_stop)

    def cancel_when_busy() -> None:
        while not is_busy():
            time.sleep(0.01)
        job.cancel()

    canceller = threading.Thread(target=cancel_when_busy)
    canceller.start()
    with pytest.raises(CancelledError):
        kept.fetch(url)
    assert job.cancelled_s is not None
    assert time.monotonic() - job.cancelled_s < 2
    canceller.join()


def test_a_cancelled_job_leaves_a_slow_server(server: SlowServer, tmp_path: Path) -> None:
    url = f"http://{server.host}/a.zip"
    assert_ends_at_once(tmp_path, url, {server.host}, server.connected.is_set)


def test_a_cancelled_job_leaves_a_tls_handshake(tmp_path: Path) -> None:
    server = SlowServer(lambda: iter(()))
    url = f"https://{server.host}/a.zip"
    assert_ends_at_once(tmp_path, url, {server.host}, server.connected.is_set)
    server.close()


def test_a_cancelled_job_leaves_a_name_that_does_not_resolve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        asked.set()
        answered.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert_ends_at_once(tmp_path, "https://images.example/a.zip", set(), asked.is_set)
    answered.set()


def test_a_cancelled_job_leaves_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SlowServer(lambda: iter(()))
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{server.host}"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    assert_ends_at_once(tmp_path, "s3://bucket/a.zip", set(), server.connected.is_set)
    server.connected.clear()
    job = Job()
    kept = Downloads(tmp_path, ReadPolicy(), job.check_stop)
    threading.Timer(0.2, job.cancel).start()
    with pytest.raises(CancelledError):
        kept.list_objects("s3://bucket/set")
    server.close()


def test_a_cancelled_job_leaves_a_file_that_another_process_downloads(tmp_path: Path) -> None:
    url, waits = "https://images.example/a.zip", threading.Event()
    job = Job()

    def check_stop() -> None:
        waits.set()
        job.check_stop()

    def cancel_when_it_waits() -> None:
        waits.wait()
        job.cancel()

    kept = Downloads(tmp_path, ReadPolicy(), check_stop)
    entry = kept._locked_entry(url)
    with entry as locked, locked.folder.with_suffix(".lock").open("w") as other:
        assert not downloads._is_locked(other)
    with locked.folder.with_suffix(".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        canceller = threading.Thread(target=cancel_when_it_waits)
        canceller.start()
        with pytest.raises(CancelledError):
            kept.fetch(url)
        canceller.join()


def test_the_items_and_the_error_of_a_background_thread_arrive() -> None:
    def source() -> Generator[int, None, None]:
        yield from range(3)
        raise ValueError("the end")

    items = in_background(source(), lambda: None)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the end"):
        next(items)


def test_a_thread_that_is_left_ends_and_closes_its_source() -> None:
    closed = threading.Event()

    def source() -> Generator[int, None, None]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = in_background(source(), lambda: None)
    assert next(items) == 0
    items.close()
    assert closed.wait(5)
