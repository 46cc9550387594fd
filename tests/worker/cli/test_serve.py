import socket
import sys

import pytest

from tasks.process import logging_setup
from tests.worker.cli.conftest import Invoke


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging_setup, "set_up_logging", lambda *_: None)


def test_metrics_need_a_port_and_the_library(
    invoke: Invoke, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = invoke("metrics", code=18, TRAINING_BROKER_URL=broker_url)
    assert "TRAINING_METRICS_PORT is 0: set a port" in shown
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    settings = {"TRAINING_BROKER_URL": broker_url, "TRAINING_METRICS_PORT": "9464"}
    assert "training-worker[metrics]" in invoke("metrics", code=16, **settings)


@pytest.mark.usefixtures("redis_client")
def test_a_taken_port_is_named(invoke: Invoke, broker_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {"TRAINING_BROKER_URL": broker_url, "TRAINING_METRICS_PORT": str(port)}
        shown = invoke("metrics", code=18, **settings)
    assert f"cannot serve http://127.0.0.1:{port}/metrics: Addr" in shown


def test_metrics_without_a_broker_name_up(invoke: Invoke) -> None:
    shown = invoke("metrics", code=6, TRAINING_METRICS_PORT="9464")
    assert "training-worker up" in shown
