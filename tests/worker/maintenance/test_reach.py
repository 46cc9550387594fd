import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tasks.settings.settings import Settings
from worker.maintenance import reach
from worker.maintenance.finding import gigabytes
from worker.maintenance.reach import check_console, check_disks, check_hub

_DiskUsage = namedtuple("_DiskUsage", "total used free")
TOKEN = "hf_" + "a" * 30


class Hub(HTTPServer):
    """Answers every HEAD and GET with one status, and notes what was asked."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(reach, "get_token", lambda: TOKEN)
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "level", "found", "remedy"),
    [
        (200, "ok", "can be downloaded", ""),
        (307, "ok", "can be downloaded", ""),
        (401, "warning", "refuses the token", "hf auth login"),
        (403, "warning", "the licence of black-forest-labs/FLUX.1-dev", "accept it at http"),
        (500, "warning", "answers with 500", "retry"),
    ],
)
def test_access_to_the_gated_model(
    hub: Hub, status: int, level: str, found: str, remedy: str
) -> None:
    hub.status = status
    finding = check_hub()
    assert (finding.level, finding.subject) == (level, "Hub")
    assert found in finding.message
    assert remedy in finding.remedy
    assert TOKEN not in f"{finding}"
    [(path, authorization)] = hub.asked
    assert path == "/black-forest-labs/FLUX.1-dev/resolve/main/model_index.json"
    assert authorization == f"Bearer {TOKEN}"


def test_a_machine_without_a_token_must_log_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "get_token", lambda: None)
    hub.status = 401
    finding = check_hub()
    assert "there is no token" in finding.message
    assert f"licence at {hub.url}/black-forest-labs/FLUX.1-dev" in finding.remedy
    assert "hf auth login" in finding.remedy


def test_an_unreachable_hub_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert check_hub().message == "http://127.0.0.1:9 does not answer (ConnectError)"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert check_hub().level == "ok"
    assert not hub.asked


@pytest.mark.parametrize("endpoint", ["http://[::", "hub", "http://a\x01b", "http://a b"])
def test_a_malformed_address_of_the_hub_is_reported(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert "does not answer" in check_hub().message


def test_disks_are_measured_in_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "not made yet")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: _DiskUsage(0, 0, 20_500_000_000))
    store, models = check_disks(settings)
    assert store.level == "ok"
    assert store.message.startswith("20.5 GB free in /")
    assert (models.level, models.message) == ("warning", f"20.5 GB free in {tmp_path}")
    assert "34.0 GB" in models.remedy
    [models_only] = check_disks(settings.model_copy(update={"store_url": "s3://bucket/fleet"}))
    assert models_only == models


def test_a_console_is_asked_for_an_answer(hub: Hub) -> None:
    settings = Settings(console_port=hub.server_port)
    assert [finding.message for finding in check_console(settings)] == [
        f"answers on 127.0.0.1:{hub.server_port}"
    ]
    assert hub.asked == [("/v1/health", None)]
    hub.status = 503
    assert [it.message for it in check_console(settings)] == ["does not run on this machine"]
    assert not list(check_console(settings.model_copy(update={"console_port": 0})))


def test_a_public_address_needs_tls(hub: Hub) -> None:
    settings = Settings(console_port=0, console_url="http://gpu.example.org")
    [plain] = check_console(settings)
    assert (plain.level, plain.message) == ("warning", "http://gpu.example.org is not encrypted")
    [other] = check_console(settings.model_copy(update={"console_url": "https://127.0.0.1:9/x"}))
    assert (other.level, other.message) == ("warning", "https://127.0.0.1:9/x does not answer")


@pytest.mark.parametrize(
    ("count", "text"), [(72_689_602_560, "72.7 GB"), (1.5e12, "1,500.0 GB"), (0, "0.0 GB")]
)
def test_bytes_are_readable(count: float, text: str) -> None:
    assert gigabytes(count) == text
