"""``rediss://``: the broker's certificate is checked, by all who talk to it."""

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
    """The broker over TLS, without a word about its certificate."""
    with TlsProxy(broker.port, certificates) as proxy:
        tail = f"localhost:{proxy.port}/0"
        yield f"rediss://{broker.url('worker').removeprefix('redis://').partition('@')[0]}@{tail}"


def test_a_worker_runs_over_tls_and_ends_when_it_has_nothing_to_do(
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


def test_who_has_no_reason_to_trust_the_certificate_does_not_talk_to_the_broker(url: str) -> None:
    unknown = "certificate verify failed"
    with connect(url) as client, pytest.raises(redis.ConnectionError, match=unknown):
        client.ping()
    app = make_app(Settings(), url)
    with app.connection_for_write() as connection, pytest.raises(OperationalError, match=unknown):
        connection.ensure_connection(max_retries=1, interval_start=0)
    with pytest.raises(redis.ConnectionError, match=unknown):
        app.backend.client.ping()


def test_the_certificate_must_be_of_the_name_that_is_asked(url: str, certificates: Path) -> None:
    other = f"{url}?ssl_ca_certs={certificates / 'ca.crt'}".replace("localhost", "127.0.0.1")
    mismatch = "IP address mismatch"
    with connect(other) as client, pytest.raises(redis.ConnectionError, match=mismatch):
        client.ping()
    app = make_app(Settings(), other)
    with app.connection_for_write() as connection, pytest.raises(OperationalError, match=mismatch):
        connection.ensure_connection(max_retries=1, interval_start=0)


def test_results_and_messages_go_over_tls_for_a_client_as_well(
    url: str, certificates: Path
) -> None:
    trusted = f"{url}?ssl_ca_certs={certificates / 'ca.crt'}"
    app = make_app(Settings(), trusted)
    assert app.backend.client.ping()
    app.backend.client.connection_pool.disconnect()
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)


def test_the_doctor_tells_of_a_certificate_that_is_not_checked(
    url: str, certificates: Path, tmp_path: Path
) -> None:
    def told(query: str) -> set[str]:
        address = SecretStr(f"{url}?{query}")
        found = check_all(Settings(broker_url=address, home=tmp_path, gpus="", flower_port=0))
        assert not any("does not answer" in it.found for it in found)
        return {it.found for it in found if it.what == "broker network"}

    assert told(f"ssl_ca_certs={certificates / 'ca.crt'}") == set()
    assert told("ssl_cert_reqs=none") == {"its certificate is not checked"}
