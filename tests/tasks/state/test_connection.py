"""Servers that cannot be the broker: each is refused with what to do."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tasks.errors import NoBrokerError
from tasks.state.connection import check_server, connect
from tests.deploy.manifests import DEPLOY
from tests.deploy.tls import TlsProxy
from tests.integration.fleets import free_port
from tests.waiting import wait_until
from worker.local.embedded_broker import find_server
from worker.supervision.process import spawn, stop


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server with the options of the test's parameter."""
    port, config = free_port(), tmp_path / "valkey.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    command = [str(find_server()), str(config), *request.param]
    process = spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with connect(f"redis://127.0.0.1:{port}") as client, suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    wait_until(answers, timeout_s=20, description="the server answers")
    yield port
    stop(process, 5)


def refusal(url: str) -> str:
    with connect(url) as client, pytest.raises(NoBrokerError) as caught:
        check_server(client, url)
    return caught.value.message


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (["--cluster-enabled", "yes"], "is a Redis Cluster"),
        (["--sentinel"], "set TRAINING_BROKER_SENTINEL_MASTER"),
    ],
    indirect=["server"],
)
def test_a_cluster_and_a_sentinel_are_no_brokers(server: int, message: str) -> None:
    assert message in refusal(f"redis://127.0.0.1:{server}/0")


@pytest.mark.parametrize("server", [[]], indirect=True)
def test_tls_on_one_side_only_is_named(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server without TLS waits for the rest of what it takes for a command.
    monkeypatch.setattr("tasks.state.connection._REPLY_TIMEOUT_S", 0.5)
    subprocess.run(
        ["bash", str(DEPLOY / "certificates.sh"), str(tmp_path), "localhost"], check=True
    )
    with TlsProxy(server, tmp_path) as proxy:
        assert "it may require TLS: try rediss://" in refusal(f"redis://localhost:{proxy.port}/0")
    assert "it may not speak TLS: try redis://" in refusal(f"rediss://localhost:{server}/0")
