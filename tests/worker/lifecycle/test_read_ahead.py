import os
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from routing.classes import GIB
from tasks.app import make_app
from tasks.jobs.job import parse_job
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.job_store import JobStore
from tests.page_cache import cached_bytes, drop_pages
from tests.waiting import wait_until
from worker.gpu.host_memory import host_memory_bytes
from worker.kombu_redis.transport import Keys
from worker.lifecycle.read_ahead import ReadAhead, Stage, local_weights
from worker.periodic import ThreadWatch

QUEUE = "gpu.40gb"
PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
MIB = 2**20


@pytest.fixture
def app(broker_url: str) -> Celery:
    return make_app(Settings(), broker_url)


def model_at(folder: Path) -> Path:
    """Make files of a base model, none of whose pages are in memory."""
    for part in PARTS:
        (folder / part).mkdir(parents=True)
        file = folder / part / "model.safetensors"
        file.write_bytes(os.urandom(MIB))
        drop_pages(file)
    return folder


def resident(folder: Path) -> list[str]:
    """Return the parts whose files are in the page cache as a whole."""
    return [part for part in PARTS if cached_bytes(folder / part / "model.safetensors") == MIB]


class Worker:
    """The read-ahead of a worker, and what it runs."""

    def __init__(
        self, client: Redis, state: JobStore, app: Celery, document: dict[str, Any]
    ) -> None:
        self.present: list[Stage] = []
        self.free = 1000 * GIB
        self._state, self._app, self._document = state, app, document
        self._read_ahead = ReadAhead(
            client,
            Keys.of({}),
            ("gpu.80gb", QUEUE),
            ThreadWatch(),
            present=lambda: self.present,
            available=lambda: self.free,
        )

    def job(self, model: Path) -> str:
        training = {**self._document["training"], "model": str(model)}
        options = {"cache_text_encoder_outputs": True, "cache_vae_outputs": True}
        document = {**self._document, "training": {**training, **options}}
        return submit(document, self._state, "result").job_id

    def send(self, job_id: str, stage: str) -> None:
        self._app.send_task(f"training.{stage}", args=(job_id,), queue=QUEUE)

    def reads(self, model: Path, *parts: str) -> None:
        self._read_ahead.run_round()
        wait_until(
            lambda: resident(model) == list(parts),
            timeout_s=10,
            description=f"{parts} are in memory",
            detail=lambda: str(resident(model)),
        )


@pytest.fixture
def worker(
    redis_client: Redis, state: JobStore, app: Celery, job_document: dict[str, Any]
) -> Worker:
    return Worker(redis_client, state, app, job_document)


def test_the_next_jobs_model_is_read_while_a_job_trains(worker: Worker, tmp_path: Path) -> None:
    own, other = model_at(tmp_path / "own"), model_at(tmp_path / "other")
    worker.send(worker.job(other), "cache")
    worker.reads(other)  # an idle worker takes the message itself
    worker.present = [(worker.job(own), "train")]
    worker.reads(other, *PARTS)
    assert resident(own) == []


def test_a_job_that_trains_next_needs_no_cached_encoders(worker: Worker, tmp_path: Path) -> None:
    other = model_at(tmp_path / "other")
    worker.present = [(worker.job(model_at(tmp_path / "own")), "train")]
    worker.send(worker.job(other), "train")
    worker.reads(other, "transformer")


def test_the_model_of_the_present_job_is_not_read(worker: Worker, tmp_path: Path) -> None:
    own = model_at(tmp_path / "own")
    worker.present = [(worker.job(own), "train")]
    worker.send(worker.job(own), "cache")
    worker.reads(own)


def test_a_job_that_encodes_gets_its_denoiser(worker: Worker, tmp_path: Path) -> None:
    own = model_at(tmp_path / "own")
    worker.present = [(worker.job(own), "cache")]
    worker.reads(own, "transformer")


def test_nothing_is_read_into_memory_that_the_job_may_need(worker: Worker, tmp_path: Path) -> None:
    other = model_at(tmp_path / "other")
    worker.present = [(worker.job(model_at(tmp_path / "own")), "train")]
    worker.send(worker.job(other), "cache")
    worker.free = host_memory_bytes() // 4
    worker.reads(other)
    worker.free *= 2
    worker.reads(other, *PARTS)


def test_messages_without_a_local_model_are_left_alone(
    worker: Worker, redis_client: Redis, tmp_path: Path
) -> None:
    worker.present = [(worker.job(model_at(tmp_path / "own")), "train")]
    redis_client.lpush("gpu.80gb", "not a message")
    worker.send("unknown", "train")
    worker.reads(tmp_path / "own")
    assert redis_client.lrange("gpu.80gb", 0, -1) == ["not a message"]
    assert redis_client.llen(QUEUE) == 1


def test_a_hub_model_is_not_downloaded(job_document: dict[str, Any]) -> None:
    job_document["training"]["model"] = "black-forest-labs/FLUX.1-dev"
    assert local_weights(parse_job(job_document).training, "train") == []
