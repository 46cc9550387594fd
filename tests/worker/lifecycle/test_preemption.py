import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.waiting import wait_until
from worker.lifecycle import preemption
from worker.lifecycle.preemption import PreemptionWatch
from worker.periodic import ThreadWatch


class Metadata(ThreadingHTTPServer):
    """A cloud's metadata service."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status, self.body = 404, ""
        self.queries = 0


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_PUT(self) -> None:
        ttl = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200 if ttl and self.path == "/latest/api/token" else 403, "the-token")

    def do_GET(self) -> None:
        aws = self.path == "/latest/meta-data/spot/instance-action"
        if aws and self.headers["X-aws-ec2-metadata-token"] != "the-token":
            self.answer(401, "")
        elif self.path == "/gcp" and self.headers["Metadata-Flavor"] != "Google":
            self.answer(403, "")
        else:
            self.server.queries += 1
            self.answer(self.server.status, self.server.body)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def polls_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_POLL_EVERY_S", 0.05)


@pytest.fixture
def noticed() -> list[str]:
    return []


@pytest.fixture
def watch(noticed: list[str]) -> Callable[[str], None]:
    return lambda source: PreemptionWatch(
        source, lambda: noticed.append(source), ThreadWatch()
    ).on_ready()


def soon(noticed: list[str]) -> None:
    wait_until(lambda: bool(noticed), timeout_s=10, description="the notice is seen")


def test_a_file_that_appears_is_a_notice(
    tmp_path: Path, watch: Callable[[str], None], noticed: list[str]
) -> None:
    file = tmp_path / "notice"
    watch(str(file))
    assert noticed == []
    file.touch()
    soon(noticed)


@pytest.mark.parametrize(
    ("status", "body"), [(404, ""), (200, "FALSE\n"), (200, "none"), (500, "x")]
)
def test_an_address_that_answers_200_is_a_notice(
    metadata: Metadata,
    watch: Callable[[str], None],
    noticed: list[str],
    status: int,
    body: str,
) -> None:
    metadata.status, metadata.body = status, body
    watch(metadata.url)
    wait_until(lambda: metadata.queries > 2, timeout_s=10, description="it polls repeatedly")
    assert noticed == []
    metadata.status, metadata.body = 200, "2026-11-24T12:00:00Z"
    soon(noticed)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_clouds_get_the_headers_they_require(
    metadata: Metadata,
    watch: Callable[[str], None],
    noticed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    cloud: str,
) -> None:
    monkeypatch.setattr(preemption, "_AWS", f"{metadata.url}/latest")
    monkeypatch.setattr(preemption, "_GCP", f"{metadata.url}/gcp")
    metadata.status, metadata.body = 200, "TRUE"
    watch(cloud)
    soon(noticed)
