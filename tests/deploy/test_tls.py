"""``rediss://``: every client verifies the broker's certificate."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from tasks.app import make_app
from tasks.settings.settings import Settings
from tasks.state.connection import connect
from tests.deploy.manifests import DEPLOY
from tests.deploy.servers import Broker
from tests.deploy.tls import TlsProxy
from worker.maintenance.doctor import check_all


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make = ["bash", str(DEPLOY / "certificates.sh"), str(folder), "localhost"]
    subprocess.run(make, check=True)
    return folder


@pytest.fixture(scope="module")
def url(broker: Broker, certificates: Path) -> Iterator[str]:
    """URL of the broker over TLS, without options for its certificate."""
    with TlsProxy(broker.port, certificates) as proxy:
        tail = f"localhost:{proxy.port}/0"
        yield f"rediss://{broker.url('worker').removeprefix('redis://').partition('@')[0]}@{tail}"


def test_worker_runs_over_tls_and_stops_when_idle(
    url: str, certificates: Path, tmp_path: Path
) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    env |= {
        "TRAINING_BROKER_URL": f"{url}?ssl_ca_certs={certificates / 'ca.crt'}",
        "TRAINING_HOME": str(tmp_path),
    }
    command = [sys.executable, "-P", "-m", "worker", "worker", "--queues", "cpu"]
    command += ["--exit-when-idle", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cpu@" in done.stderr
    assert "no message for 1 s: the worker stops" in done.stderr
    assert "insecure" not in done.stderr.lower()


def test_untrusted_certificate_is_refused(url: str) -> None:
    unknown = "certificate verify failed"
    with connect(url) as client, pytest.raises(redis.ConnectionError, match=unknown):
        client.ping()
    app = make_app(Settings(), url)
    with app.connection_for_write() as connection, pytest.raises(OperationalError, match=unknown):
        connection.ensure_connection(max_retries=1, interval_start=0)
    with pytest.raises(redis.ConnectionError, match=unknown):
        app.backend.client.ping()


def test_certificate_of_another_name_is_refused(url: str, certificates: Path) -> None:
    other = f"{url}?ssl_ca_certs={certificates / 'ca.crt'}".replace("localhost", "127.0.0.1")
    mismatch = "IP address mismatch"
    with connect(other) as client, pytest.raises(redis.ConnectionError, match=mismatch):
        client.ping()
    app = make_app(Settings(), other)
    with app.connection_for_write() as connection, pytest.raises(OperationalError, match=mismatch):
        connection.ensure_connection(max_retries=1, interval_start=0)


def test_client_uses_tls_for_messages_and_results(url: str, certificates: Path) -> None:
    trusted = f"{url}?ssl_ca_certs={certificates / 'ca.crt'}"
    app = make_app(Settings(), trusted)
    assert app.backend.client.ping()
    app.backend.client.connection_pool.disconnect()
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)


def test_doctor_reports_an_unverified_certificate(
    url: str, certificates: Path, tmp_path: Path
) -> None:
    def reported(query: str) -> set[str]:
        address = SecretStr(f"{url}?{query}")
        findings = check_all(Settings(broker_url=address, home=tmp_path, gpus="", flower_port=0))
        assert not any("does not answer" in finding.message for finding in findings)
        return {finding.message for finding in findings if finding.subject == "broker network"}

    assert reported(f"ssl_ca_certs={certificates / 'ca.crt'}") == set()
    assert reported("ssl_cert_reqs=none") == {"its certificate is not checked"}
