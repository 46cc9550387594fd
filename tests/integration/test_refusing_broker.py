"""A broker that refuses is unavailable: training continues, and nothing ends or starts twice."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from tasks.events import StageStarted
from tasks.state.connection import connect
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.refusals import REFUSALS, Refusal
from tests.waiting import wait_until
from worker.local.embedded_broker import find_running
from worker.miniature.dataset import draw_dataset
from worker.supervision.process import spawn, stop

# A trainer that runs only while the broker refuses does not end before the last refusal.
STEPS = 200
# A worker asks the broker twice a second while it trains, and renews its leases once.
REFUSES_FOR_S = 1.5


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with one GPU worker and a broker of its own."""
    with Fleet(tmp_path_factory.mktemp("fleet"), "40gb") as running:
        yield running


@pytest.fixture(scope="module")
def admin(fleet: Fleet) -> Iterator[Redis]:
    url = find_running(fleet.home)
    assert url is not None
    with connect(url) as client:
        yield client


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    images = tmp_path_factory.mktemp("data") / "images"
    draw_dataset(images)
    job = short_job(tiny_model, images)
    job["training"] |= {"max_train_steps": STEPS, "save_every_n_steps": 5, "max_checkpoints": 3}
    return job


def saved_step(fleet: Fleet, job_id: str) -> int:
    checkpoints = fleet.record(job_id).artifacts.checkpoints
    return checkpoints[-1].step if checkpoints else 0


def checkpoints_in_store(fleet: Fleet, job_id: str) -> set[Path]:
    return set((fleet.home / "store" / "jobs" / job_id / "checkpoints").glob("*"))


def train_while_refused(
    fleet: Fleet, admin: Redis, trainer: psutil.Process, refusal: Refusal, job_id: str
) -> None:
    """Let the trainer save a checkpoint while the broker refuses; return when it is recorded."""
    before, stored = saved_step(fleet, job_id), checkpoints_in_store(fleet, job_id)
    with refusal.during(admin, fleet.home / "broker"):
        trainer.resume()
        wait_until(
            # When the second one begins, the first one was reported.
            lambda: len(checkpoints_in_store(fleet, job_id) - stored) > 1,
            timeout_s=PATIENCE_S,
            description=f"it saves a checkpoint during {refusal.code}",
            detail=fleet.log,
        )
        trainer.suspend()
        time.sleep(REFUSES_FOR_S)
    wait_until(
        lambda: saved_step(fleet, job_id) > before,
        timeout_s=PATIENCE_S,
        description=f"the checkpoint of the time of {refusal.code} is recorded",
        detail=fleet.log,
    )


def test_a_job_trains_through_every_refusal(
    fleet: Fleet, admin: Redis, job: dict[str, Any]
) -> None:
    undisturbed = fleet.submit(job, "--watch")
    assert undisturbed.code == 0, f"{undisturbed}\n{fleet.log()}"
    job_id = fleet.submit(job | {"id": "disturbed"}).documents[0]["job_id"]
    wait_until(
        lambda: saved_step(fleet, job_id) > 0,
        timeout_s=PATIENCE_S,
        description="it trains",
        detail=fleet.log,
    )
    [trainer] = fleet.trainers()
    trainer.suspend()
    before = {process.pid for process in fleet.process_family()}
    try:
        for refusal in REFUSALS:
            train_while_refused(fleet, admin, trainer, refusal, job_id)
    finally:
        trainer.resume()
    assert before <= {process.pid for process in fleet.process_family()}
    ran = fleet.run("watch", job_id, "--json")
    assert ran.documents[-1]["sha256"] == undisturbed.documents[-1]["sha256"]
    started = [event.stage for event in fleet.events(job_id) if isinstance(event, StageStarted)]
    assert started == ["prepare", "cache", "train", "publish"]


def test_a_worker_that_starts_meanwhile_waits(fleet: Fleet, admin: Redis, tmp_path: Path) -> None:
    log, ready = tmp_path / "log", tmp_path / "ready"
    command = ["worker", "--name", "late", "--queues", "cpu", "--ready-file", str(ready)]
    [full] = [refusal for refusal in REFUSALS if refusal.code == "OOM"]
    with full.during(admin, fleet.home / "broker"):
        with log.open("wb") as output:
            argv = [sys.executable, "-P", "-m", "worker", *command]
            worker = spawn(argv, env=fleet.env, stdout=output, stderr=output)
        wait_until(
            lambda: "waits for the broker" in log.read_text() or worker.poll() is not None,
            timeout_s=PATIENCE_S,
            description="it waits",
            detail=log.read_text,
        )
        time.sleep(3)  # long enough for a second line
    wait_until(ready.exists, timeout_s=PATIENCE_S, description="it serves", detail=log.read_text)
    stop(worker, PATIENCE_S)
    lines = log.read_text().splitlines()
    [waits] = [line for line in lines if "the worker waits for the broker" in line]
    assert "OOM command not allowed" in waits
    assert "raise its maxmemory" in waits
    assert sum("the broker is available again" in line for line in lines) == 1
    assert "Traceback" not in log.read_text()
