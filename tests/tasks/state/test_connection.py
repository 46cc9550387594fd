"""Servers that cannot be the broker: each is refused with what to do."""

import subprocess
from pathlib import Path

import pytest

from tasks.errors import NoBrokerError
from tasks.state.connection import check_server, connect
from tests.deploy.manifests import DEPLOY
from tests.deploy.tls import TlsProxy
from tests.redis_servers import cluster_options, running_server


def refusal(url: str) -> str:
    with connect(url) as client, pytest.raises(NoBrokerError) as caught:
        check_server(client, url)
    return caught.value.message


def test_a_cluster_and_a_sentinel_are_no_brokers(tmp_path: Path) -> None:
    with running_server(tmp_path, *cluster_options()) as port:
        assert "is a Redis Cluster" in refusal(f"redis://127.0.0.1:{port}/0")
    with running_server(tmp_path, "--sentinel") as port:
        shown = refusal(f"redis://127.0.0.1:{port}/0")
        assert "set TRAINING_BROKER_SENTINEL_MASTER" in shown


def test_tls_on_one_side_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server without TLS waits for the rest of what it takes for a command.
    monkeypatch.setattr("tasks.state.connection._REPLY_TIMEOUT_S", 0.5)
    subprocess.run(
        ["bash", str(DEPLOY / "certificates.sh"), str(tmp_path), "localhost"], check=True
    )
    with running_server(tmp_path) as port:
        with TlsProxy(port, tmp_path) as proxy:
            shown = refusal(f"redis://localhost:{proxy.port}/0")
            assert "it may require TLS: try rediss://" in shown
        assert "it may not speak TLS: try redis://" in refusal(f"rediss://localhost:{port}/0")
