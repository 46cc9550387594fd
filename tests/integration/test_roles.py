"""A whole job where each role has its own rights on the broker, and what each may not do."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from redis import Redis
from redis.exceptions import NoPermissionError

from tests.deploy.manifests import processes
from tests.deploy.servers import Broker, Started

SERVICES = {it.where.removeprefix("compose.yaml "): it for it in processes()}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def workers(broker: Broker, tmp_path: Path, pictures: Path) -> Iterator[dict[str, str]]:
    """The workers of the compose file, as its ``worker`` role; gives settings of the fleet."""
    fleet = {
        "TRAINING_STORE_URL": (tmp_path / "store").as_uri(),
        "TRAINING_DATA_ROOTS": str(pictures),
        "TRAINING_VISIBILITY_TIMEOUT": "4",
    }
    started = [
        Started(SERVICES[name], broker, tmp_path / name, **fleet) for name in ("cpu", "gpu-40gb")
    ]
    try:
        for it in started:
            it.start()
        for it in started:
            it.wait_until_ready()
        yield fleet
        for it in started:
            it.ask_to_stop()
        assert [it.end() for it in started] == [0, 0]
    finally:
        for it in started:
            it.kill()


def refused(*commands: Callable[[], object]) -> None:
    for command in commands:
        with pytest.raises(NoPermissionError):
            command()


def test_each_role_does_its_work_and_nothing_else(
    broker: Broker, workers: dict[str, str], job: dict[str, Any], tmp_path: Path
) -> None:
    url = broker.url("backend")
    app: Any = Celery(broker=url, backend=url, set_as_current=False)
    # As the README shows it.
    result = app.send_task("training.submit", args=[job], queue="cpu").get(timeout=90)
    key = f"training:job:{result['job_id']}"
    with broker.client("backend") as backend:
        assert "succeeded" in str(backend.xrevrange(f"{key}:events", count=1))
        refused(
            lambda: backend.hgetall(key),
            lambda: backend.hset(key, "status", "succeeded"),
            lambda: backend.xadd(f"{key}:events", {"event": "{}"}),
            lambda: backend.zrange("training:jobs", 0, -1),
            lambda: backend.rpop("cpu"),
            lambda: backend.brpop(["cpu"], 1),
            lambda: backend.lrange("cpu", 0, -1),
            lambda: backend.delete("cpu"),
            lambda: backend.lpush("gpu.40gb", "{}"),
            lambda: backend.hgetall("unacked"),
            lambda: backend.publish("/0.celery.pidbox", "{}"),
            lambda: backend.keys(),
            lambda: backend.scan(),
            lambda: backend.eval("return 1", 0),
            lambda: backend.flushall(),
        )

    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job), "utf-8")
    console_env = Started(SERVICES["console"], broker, tmp_path / "console", **workers).env

    def console_says(*command: str) -> dict[str, Any]:
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "worker", *command, "--json"],
            env=console_env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran
        answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[0])
        return answer

    job_id = console_says("submit", str(file))["job_id"]
    assert console_says("cancel", job_id)["job_id"] == job_id
    with broker.client("console") as console:
        refused(
            lambda: console.rpop("cpu"),
            lambda: console.hset("unacked", "tag", "{}"),
            lambda: console.delete("unacked"),
            lambda: console.flushall(),
            lambda: console.config_get("*"),
        )

    with broker.client("metrics") as metrics:
        assert metrics.hget(key, "status") == "succeeded"
        assert metrics.llen("gpu.40gb") == 0
        refused(*_writes(metrics, key))
    with broker.client("flower") as flower:
        assert flower.llen("cpu") == 0
        refused(
            *_writes(flower, key),
            lambda: flower.hgetall(key),
            lambda: flower.lpush("cpu", "{}"),
            lambda: flower.get(f"celery-task-meta-{result['job_id']}"),
        )
    with broker.client("worker") as worker:
        refused(
            lambda: worker.flushall(),
            lambda: worker.config_set("appendonly", "no"),
            lambda: worker.set("elsewhere", "1"),
            lambda: worker.execute_command("ACL", "LIST"),
        )
    with Redis(port=broker.port) as anybody:
        refused(lambda: anybody.llen("cpu"))


def _writes(client: Redis, key: str) -> tuple[Callable[[], object], ...]:
    return (
        lambda: client.hset(key, "status", "failed"),
        lambda: client.rpop("cpu"),
        lambda: client.flushall(),
        lambda: client.delete(key),
    )
