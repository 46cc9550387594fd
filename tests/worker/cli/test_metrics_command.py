import socket
from pathlib import Path

import pytest
import redis

from tasks.errors import JobError, NotInstalledError
from tasks.settings.settings import Settings
from worker.cli.commands import metrics


@pytest.fixture(autouse=True)
def this_process_keeps_its_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "set_up_logging", lambda *_: None)


def settings(url: str, port: int) -> Settings:
    return Settings.model_validate({"broker_url": url, "metrics_port": port})


def test_without_a_port_or_its_library_it_says_what_to_do(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match="TRAINING_METRICS_PORT is 0: set a port"):
        metrics.run(settings(broker_url, 0), markdown=False)
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"training-worker\[console\]"):
        metrics.run(settings(broker_url, 9464), markdown=False)


def test_a_port_that_is_taken_is_named(broker_url: str, redis_client: redis.Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=rf"127\.0\.0\.1:{port}/metrics cannot be served: Addr"):
            metrics.run(settings(broker_url, port), markdown=False)


def test_without_a_broker_the_way_to_one_is_told(tmp_path: Path) -> None:
    nowhere = Settings.model_validate({"home": tmp_path, "metrics_port": 9464})
    with pytest.raises(JobError, match="training-worker up"):
        metrics.run(nowhere, markdown=False)
