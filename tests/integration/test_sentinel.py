"""A fleet behind Sentinel: its broker's master is killed, and a replica takes its place."""

import json
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.contract import STAGES
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet, free_port
from tests.redis_servers import PASSWORD, QUOTED_PASSWORD, SENTINEL_PASSWORD, Sentinels
from tests.waiting import wait_until
from worker.miniature.dataset import draw_dataset

PORTS = ("FLOWER", "METRICS", "CONSOLE")


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    with Sentinels(tmp_path / "servers") as running:
        yield running


@pytest.fixture
def fleet(tmp_path: Path, sentinels: Sentinels) -> Iterator[Fleet]:
    ports = {f"TRAINING_{name}_PORT": str(free_port()) for name in PORTS}
    settings = {
        **sentinels.env,
        **ports,
        "TRAINING_DATA_ROOTS": str(tmp_path),
        "TRAINING_FLOWER_BASIC_AUTH": "operator:flower",
    }
    with Fleet(tmp_path / "home", "40gb", **settings) as running:
        yield running


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    draw_dataset(tmp_path / "images")
    job = short_job(tiny_model, tmp_path / "images")
    job["training"] |= {"max_train_steps": 40, "save_every_n_steps": 10}
    return job


def answer(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as reply:
        return str(reply.read().decode())


def test_a_failover_in_mid_training_ends_no_worker_and_no_attempt(
    sentinels: Sentinels, fleet: Fleet, job: dict[str, Any]
) -> None:
    job_id = fleet.submit(job).documents[0]["job_id"]
    wait_until(
        lambda: bool(fleet.record(job_id).artifacts.checkpoints),
        timeout_s=PATIENCE_S,
        description="the job has a checkpoint",
        detail=fleet.log,
    )
    [trainer] = fleet.trainers()
    processes = {process.pid for process in [*fleet.workers(), trainer]}
    trainer.suspend()
    old = sentinels.master_port()
    # Without its only replica, the new master refuses writes.
    sentinels.kill_master()
    sentinels.start_server(old)
    # The demoted master ends no connection, and refuses writes too.
    sentinels.demote_master()
    trainer.resume()
    assert fleet.run("watch", job_id, "--json").code == 0, fleet.log()

    assert {process.pid for process in [*fleet.workers(), *fleet.trainers()]} == processes
    assert fleet.record(job_id).attempt == len(STAGES), fleet.log()
    assert len(list((fleet.home / "store" / "outputs" / job_id).rglob("manifest.json"))) == 1
    # Every other part of the fleet reads the new master.
    ports = {name: fleet.env[f"TRAINING_{name}_PORT"] for name in PORTS}
    login = f"Basic {b64encode(b'operator:flower').decode()}"
    flower = f"http://127.0.0.1:{ports['FLOWER']}/api/queues/length"
    queues = json.loads(answer(flower, Authorization=login))["active_queues"]
    assert {"cpu", "gpu.40gb"} <= {queue["name"] for queue in queues}
    assert "training_broker_up 1.0" in answer(f"http://127.0.0.1:{ports['METRICS']}/metrics")
    assert answer(f"http://127.0.0.1:{ports['CONSOLE']}/v1/health")
    for secret in (PASSWORD, QUOTED_PASSWORD, SENTINEL_PASSWORD):
        assert secret not in fleet.log()
