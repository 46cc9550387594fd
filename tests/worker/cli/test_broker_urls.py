"""Brokers that cannot work: each command ends with one sentence, and no piece of a password."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.redis_servers import cluster_options, running_server
from tests.worker.cli.conftest import Invoke


@pytest.mark.parametrize(
    "url",
    [
        "amqp://:hun-ter2@host",
        "memory://",
        "http://hun-ter2@host",
        "hun-ter2@host:6379",
        "redis://:p@hun-ter2/@host/0",
        "redis://user:hun-ter2",
        "redis://:x@host/0?hun-ter2=1",
        "redis://:x@host/hun-ter2",
        "redis://:hun-ter2@a;redis://:hun-ter2@b",
        "sentinel://:hun-ter2@a;sentinel://b",
    ],
)
def test_a_wrong_url_is_one_sentence(invoke: Invoke, url: str) -> None:
    shown = invoke("list", code=2, TRAINING_BROKER_URL=url)
    assert shown.count("TRAINING_BROKER_URL: ") == shown.count("- ") == 1
    assert "hun-ter2" not in shown


@pytest.fixture
def cluster_url(tmp_path: Path) -> Iterator[str]:
    """The URL of a server in cluster mode."""
    with running_server(tmp_path, *cluster_options()) as port:
        yield f"redis://127.0.0.1:{port}/0"


def test_a_cluster_is_refused(
    invoke: Invoke, cluster_url: str, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(job_document), "utf-8")
    settings = {"TRAINING_BROKER_URL": cluster_url}
    for command in (["submit", str(job)], ["list"]):
        shown = invoke(*command, code=6, **settings)
        assert "error: the broker is a Redis Cluster" in shown
        assert "Traceback" not in shown
    assert "is a Redis Cluster" in invoke("doctor", "--json", code=1, **settings)


def test_a_worker_refuses_a_cluster(cluster_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "worker", "worker", "--queues", "cpu"]
    env = {"TRAINING_BROKER_URL": cluster_url, "TRAINING_HOME": str(tmp_path)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 6
    assert "the broker is a Redis Cluster" in ended.stderr
    assert "Traceback" not in ended.stderr
