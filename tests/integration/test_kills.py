"""Killed processes: their jobs resume and end with the same file."""

import copy
import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.metrics import TAKEOVERS
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.page_cache import cached_bytes, drop_pages
from tests.waiting import wait_until
from worker.local.embedded_broker import find_running
from worker.miniature.dataset import draw_dataset

# Some seconds of training after the first checkpoint, at which each test interrupts the job.
LONG_JOB_STEPS = 120


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with one GPU worker, whose trainer is the job's: a second one would keep another."""
    with Fleet(tmp_path_factory.mktemp("fleet"), "40gb") as running:
        yield running


@pytest.fixture(scope="module")
def long_job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job that is long enough to be killed in the middle of an epoch."""
    images = tmp_path_factory.mktemp("data") / "images"
    draw_dataset(images)
    job = short_job(tiny_model, images)
    job["training"] |= {"max_train_steps": LONG_JOB_STEPS, "save_every_n_steps": 10}
    return job


@pytest.fixture(scope="module")
def expected_sha256(fleet: Fleet, long_job: dict[str, Any]) -> str:
    """Return the digest of the undisturbed job's file."""
    ran = fleet.submit(long_job, "--watch")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    sha256: str = ran.documents[-1]["sha256"]
    return sha256


def started(fleet: Fleet, job: dict[str, Any]) -> str:
    """Submit a job and wait until it has a checkpoint and still trains."""
    job_id: str = fleet.submit(job).documents[0]["job_id"]
    wait_until(
        lambda: bool(fleet.record(job_id).artifacts.checkpoints),
        timeout_s=PATIENCE_S,
        description="the job has a checkpoint",
        detail=fleet.log,
    )
    return job_id


@contextmanager
def held_up(fleet: Fleet) -> Iterator[None]:
    """Suspend the trainer, so that the job cannot end before a command arrives."""
    [trainer] = fleet.trainers()
    trainer.suspend()
    try:
        yield
    finally:
        trainer.resume()


def resumed(fleet: Fleet, job_id: str) -> bool:
    return "from step" in (fleet.record(job_id).stages["train"].summary or "")


def finished(fleet: Fleet, job_id: str) -> dict[str, Any]:
    ran = fleet.run("watch", job_id, "--json")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    return ran.documents[-1]


def test_a_killed_trainer_resumes_with_the_same_result(
    fleet: Fleet, long_job: dict[str, Any], expected_sha256: str
) -> None:
    job_id = started(fleet, long_job)
    [trainer] = fleet.trainers()
    trainer.kill()
    assert finished(fleet, job_id)["sha256"] == expected_sha256


def test_a_killed_pool_child_leaves_no_trainer_and_the_job_resumes(
    fleet: Fleet, long_job: dict[str, Any], expected_sha256: str
) -> None:
    job_id = started(fleet, long_job)
    [trainer] = fleet.trainers()
    child = trainer.parent()
    assert child is not None
    takeovers = TAKEOVERS.field("train")
    before = fleet.counts().get(takeovers, 0)
    child.kill()
    wait_until(
        lambda: not trainer.is_running() or trainer.status() == "zombie",
        timeout_s=10,
        description="the trainer ended with its worker",
    )
    assert finished(fleet, job_id)["sha256"] == expected_sha256
    assert resumed(fleet, job_id)
    assert fleet.counts()[takeovers] == before + 1


def test_a_killed_broker_restarts_and_the_job_has_the_same_result(
    fleet: Fleet, long_job: dict[str, Any], expected_sha256: str
) -> None:
    job_id = started(fleet, long_job)
    [broker] = [p for p in fleet.process_family() if p.name() == "valkey-server"]
    broker.kill()
    broker.wait(PATIENCE_S)
    wait_until(
        lambda: find_running(fleet.home) is not None,
        timeout_s=PATIENCE_S,
        description="the broker is back",
        detail=fleet.log,
    )
    assert finished(fleet, job_id)["sha256"] == expected_sha256


def test_a_drained_or_killed_fleet_resumes_on_restart(
    tmp_path: Path, long_job: dict[str, Any], expected_sha256: str
) -> None:
    home = tmp_path / "home"
    with Fleet(home, "40gb") as first:
        unknown = first.run("drain", "unknown@nowhere", "--json")
        assert unknown.code == 2
        assert "live workers: cpu@" in unknown.documents[0]["error"]["message"]
        job_id = started(first, long_job)
        with ThreadPoolExecutor(1) as pool:
            with held_up(first):
                draining = pool.submit(first.run, "drain", "--all", "--json")
                wait_until(
                    lambda: "has drained" in first.log(),
                    timeout_s=PATIENCE_S,
                    description="the idle worker has ended, so both have been asked to",
                    detail=first.log,
                )
            drained = draining.result()
        assert [document["state"] for document in drained.documents] == ["stopped", "stopped"], (
            drained
        )
        wait_until(
            lambda: first.workers() == [] and first.log().count("has drained") == 2,
            timeout_s=20,
            description="both have ended, and are not started again",
            detail=first.log,
        )
        assert first.record(job_id).pending_queue == "gpu.40gb"
    second = Fleet(home, "40gb")
    second.__enter__()
    stopped_at = second.record(job_id).artifacts.checkpoints[-1].step
    wait_until(
        lambda: second.record(job_id).artifacts.checkpoints[-1].step > stopped_at,
        timeout_s=PATIENCE_S,
        description="the job resumes from its checkpoint",
        detail=second.log,
    )
    family = second.process_family()
    second.process.send_signal(signal.SIGKILL)
    second.process.wait(PATIENCE_S)
    wait_until(
        lambda: not any(member.is_running() for member in family),
        timeout_s=20,
        description="everything ended with the fleet's first process",
        detail=second.log,
    )
    with Fleet(home, "40gb") as third:
        assert finished(third, job_id)["sha256"] == expected_sha256
        assert resumed(third, job_id)


def test_a_cancelled_job_stops_and_leaves_no_trainer(
    fleet: Fleet, long_job: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    [file] = (model / "transformer").glob("*.safetensors")
    drop_pages(file)
    following = copy.deepcopy(long_job)
    following["training"]["model"] = str(model)
    job_id = started(fleet, long_job)
    with held_up(fleet):
        next_id = fleet.submit(following).documents[0]["job_id"]
        wait_until(
            lambda: "reads ahead" in fleet.log() and cached_bytes(file) >= file.stat().st_size,
            timeout_s=PATIENCE_S,
            description="the worker reads the next job's model ahead",
            detail=fleet.log,
        )
        assert fleet.run("cancel", next_id).code == 0
        assert fleet.run("cancel", job_id).code == 0
    ran = fleet.run("watch", job_id, "--json")
    assert ran.code == 10, ran
    assert fleet.status(job_id)["status"] == "cancelled"
    assert fleet.trainers() == []


def test_cancel_with_save_publishes_the_last_checkpoint(
    fleet: Fleet, long_job: dict[str, Any]
) -> None:
    job_id = started(fleet, long_job)
    with held_up(fleet):
        assert fleet.run("cancel", job_id, "--save").code == 0
    document = finished(fleet, job_id)
    assert document["status"] == "cancelled"
    manifest = json.loads(Path(document["manifest"]).read_text())
    assert 10 <= manifest["steps"] < LONG_JOB_STEPS
    assert Path(document["published"]).is_file()


def test_a_paused_job_frees_its_worker_and_resumes_exactly(
    fleet: Fleet, long_job: dict[str, Any], expected_sha256: str
) -> None:
    job_id = started(fleet, long_job)
    with held_up(fleet):
        assert fleet.run("pause", job_id).code == 0
    wait_until(
        lambda: fleet.record(job_id).status == "paused",
        timeout_s=PATIENCE_S,
        description="the job is paused",
        detail=fleet.log,
    )
    assert fleet.trainers() == []
    assert "until the job is resumed" in fleet.status(job_id)["waiting_reason"]
    assert fleet.run("resume", job_id).code == 0
    assert finished(fleet, job_id)["sha256"] == expected_sha256
    assert resumed(fleet, job_id)
