"""Servers that cannot be the broker: each is refused with what to do."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks.app import make_app
from tasks.errors import NoBrokerError
from tasks.settings.settings import Settings
from tasks.state.broker_url import with_sentinel
from tasks.state.connection import check_server, connect, connect_sentinels
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


def test_a_missing_file_of_tls_is_named(tmp_path: Path) -> None:
    with running_server(tmp_path) as port:
        shown = refusal(f"rediss://localhost:{port}/0?ssl_ca_certs=/nowhere/ca.crt")
    assert "ssl_ca_certs names no file that can be read" in shown


def test_connections_through_sentinels_use_tls_if_asked() -> None:
    url = with_sentinel("sentinels://:pw@a;sentinels://b?ssl_ca_certs=/ca", "main", "its own")
    pool: Any = connect(url).connection_pool
    assert issubclass(pool.connection_class, redis.SSLConnection)
    assert pool.connection_kwargs["ssl_ca_certs"] == "/ca"
    for sentinel in connect_sentinels(url):
        assert sentinel.connection_pool.connection_class is redis.SSLConnection
        assert sentinel.connection_pool.connection_kwargs["password"] == "its own"
    conf = make_app(Settings(), url).conf
    assert conf.broker_use_ssl == conf.redis_backend_use_ssl == pool_options(pool)


def pool_options(pool: Any) -> dict[str, Any]:
    return {k: v for k, v in pool.connection_kwargs.items() if k.startswith("ssl_")}
