"""A job on a broker where each role has its own rights, and what each may not do."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from redis import Redis
from redis.exceptions import NoPermissionError

from tasks.state.fleet_overview import read_overview
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.tenants.webhook_secrets import WebhookSecrets
from tests.deploy.manifests import processes
from tests.deploy.servers import PATIENCE_S, Broker, Started
from tests.waiting import wait_until

PROCESSES = {process.where: process for process in processes()}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, images: Path) -> dict[str, str]:
    """The fleet's settings."""
    return {
        "TRAINING_STORE_URL": (tmp_path / "store").as_uri(),
        "TRAINING_DATA_ROOTS": str(images),
        "TRAINING_VISIBILITY_TIMEOUT": "4",
    }


@pytest.fixture
def workers(
    broker: Broker, settings: dict[str, str], tmp_path: Path
) -> Iterator[tuple[Started, Started]]:
    """The running CPU worker of the compose file, and KEDA's GPU worker, which is not started."""
    cpu = Started(PROCESSES["compose.yaml cpu"], broker, tmp_path / "cpu", **settings)
    keda = PROCESSES["k8s ScaledJob gpu-40gb"]
    # It may be idle for two seconds instead of five minutes.
    short = replace(keda, argv=tuple("2" if word == "300" else word for word in keda.argv))
    gpu = Started(short, broker, tmp_path / "gpu", **settings)
    try:
        cpu.start()
        cpu.wait_until_ready()
        yield cpu, gpu
        cpu.ask_to_stop()
        assert cpu.end() == 0, cpu.log()
    finally:
        cpu.kill()
        gpu.kill()


def refused(*commands: Callable[[], object]) -> None:
    for command in commands:
        with pytest.raises(NoPermissionError):
            command()


def test_each_role_has_only_its_own_rights(
    broker: Broker,
    workers: tuple[Started, Started],
    settings: dict[str, str],
    job: dict[str, Any],
    tmp_path: Path,
) -> None:
    _, gpu = workers
    url = broker.url("backend")
    app: Any = Celery(broker=url, backend=url, set_as_current=False)
    # As the README shows it.
    sent = app.send_task("training.submit", args=[job], queue="submit")
    # Without a GPU worker the job waits in its tenant queue, where metrics count it.
    with broker.client("metrics") as metrics:
        wait_until(
            lambda: (
                TenantQueues(metrics, timedelta(days=1)).waiting() == {"gpu.40gb": {"default": 1}}
            ),
            timeout_s=PATIENCE_S,
            description="the job waits for a GPU",
        )
    gpu.start()
    result = sent.get(timeout=90)
    # The worker stops by itself when it is idle.
    assert gpu.end() == 0, gpu.log()
    assert "no message for 2 s" in gpu.log()
    key = f"training:job:{result['job_id']}"
    with broker.client("backend") as backend:
        assert "succeeded" in str(backend.xrevrange(f"{key}:events", count=1))
        assert backend.xrevrange(f"{key}:progress", count=1)
        refused(
            lambda: backend.hgetall(key),
            lambda: backend.hset(key, "status", "succeeded"),
            lambda: backend.xadd(f"{key}:events", {"event": "{}"}),
            lambda: backend.zrange("training:jobs", 0, -1),
            lambda: backend.rpop("submit"),
            lambda: backend.sadd("submit", "x"),
            lambda: backend.sadd(f"celery-task-meta-{result['job_id']}", "x"),
            lambda: backend.brpop(["submit"], 1),
            lambda: backend.lrange("submit", 0, -1),
            lambda: backend.delete("submit"),
            lambda: backend.lpush("cpu", "{}"),
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
    console_env = Started(
        PROCESSES["compose.yaml console"], broker, tmp_path / "console", **settings
    ).env

    def console_prints(*command: str) -> Any:
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "worker", *command, "--json"],
            env=console_env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran
        return json.loads(ran.stdout.splitlines()[0])

    job_id = console_prints("submit", str(file))["job_id"]
    assert console_prints("cancel", job_id)["job_id"] == job_id
    [entry] = console_prints("audit")
    assert (entry["action"], entry["subject"]) == ("job.cancel", job_id)
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
        assert read_overview(flower).queues[0].messages == 0
        refused(
            *_writes(flower, key),
            lambda: flower.hgetall(key),
            lambda: flower.lrange("training:unreadable", 0, -1),
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
    secrets = "training-secrets:webhooks:default"
    with broker.client("console") as console:
        assert (
            WebhookSecrets(console).create("default")[1]
            == WebhookSecrets(console).signing("default")[0]
        )
    with broker.client("worker") as worker:
        assert len(WebhookSecrets(worker).signing("default")) == 1
        refused(lambda: worker.delete(secrets), lambda: WebhookSecrets(worker).create("default"))
    for role in ("backend", "metrics", "flower"):
        with broker.client(role) as client:
            refused(lambda client=client: client.hgetall(secrets))  # type: ignore[misc]
    with Redis(port=broker.port) as stranger:
        refused(lambda: stranger.llen("cpu"))


def _writes(client: Redis, key: str) -> tuple[Callable[[], object], ...]:
    return (
        lambda: client.hset(key, "status", "failed"),
        lambda: client.rpop("cpu"),
        lambda: client.flushall(),
        lambda: client.delete(key),
    )
