import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis import Redis
from redis.lock import Lock

from tasks import events, extras
from tasks.cache.index import PackIndex
from tasks.captions.requests import CaptionModel, CaptionRequestDocument
from tasks.captions.runs import MAX_ATTEMPTS, CaptionRun, CaptionRuns
from tasks.data.read_policy import ReadPolicy
from tasks.data.uploads import StoredUploads
from tasks.errors import StoreError, TrainerError
from tasks.metrics import CAPTION_RUNS
from tasks.stages.caption import write_captions
from tasks.stages.outcomes import Discarded, Requeued, RetriedAfterDelay
from tasks.stages.trainer_protocol import CaptionRequest, TrainerRequest
from tasks.stages.worker_context import (
    CaptioningTrainer,
    CaptionServices,
    GpuUnhealthy,
    TrainerInterrupted,
    WorkerContext,
    WorkerServices,
)
from tasks.state.counters import Counters
from tasks.state.fleet_snapshot import Running, read_fleet
from tasks.state.job_store import JobStore
from tasks.store import Store
from worker.supervision.trainer_pool import TrainerPool
from worker.supervision.trainer_process import Limits

UPLOAD = "a" * 32


class Captioner:
    """Stands at the CaptioningTrainer protocol: the caption of an image is its name.

    Args:
        ends: What each of its calls raises after the first image; None for nothing.
    """

    def __init__(self, *ends: Exception | None) -> None:
        self._ends = list(ends)
        self.requests: list[CaptionRequest] = []
        self.on_image: Callable[[], None] = lambda: None

    def caption(
        self,
        request: CaptionRequest,
        *,
        on_event: Callable[[events.Event], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.requests.append(request)
        end = self._ends.pop(0) if self._ends else None
        for image in request.images:
            with Image.open(image.path) as copy:
                assert copy.format == "JPEG"
            on_event(events.CaptionWritten(name=image.name, text=f"a {image.name}"))
            self.on_image()
            if end is not None:
                raise end
            if stop_requested():
                raise TrainerInterrupted

    def run(self, request: TrainerRequest, **_: Any) -> events.CacheDone | events.TrainDone:
        raise AssertionError("no job is trained here")

    def close(self) -> None:
        """It keeps nothing."""


class Unhealthy(WorkerServices):
    """The services of a worker whose GPU is unhealthy."""

    def check_gpu(self, needed_gib: float) -> None:
        raise GpuUnhealthy("it is hot")


@pytest.fixture
def runs(redis_client: Redis) -> CaptionRuns:
    return CaptionRuns(redis_client)


@pytest.fixture
def make_worker(
    tmp_path: Path, redis_client: Redis, state: JobStore, runs: CaptionRuns
) -> Callable[..., WorkerContext]:
    def make(trainer: CaptioningTrainer, **fields: Any) -> WorkerContext:
        context = WorkerContext(
            name="w",
            device="cpu",
            state=state,
            pack_index=PackIndex(redis_client, timedelta(hours=1), timedelta(seconds=2)),
            store=Store((tmp_path / "store").as_uri()),
            trainer=trainer,
            read_policy=ReadPolicy(),
            downloads_dir=tmp_path / "downloads",
            scratch_dir=tmp_path / "scratch",
            captions=CaptionServices(
                runs,
                trainer,
                Counters(redis_client, timedelta(hours=1)),
                lease_s=5,
                max_bytes=10**8,
            ),
        )
        return replace(context, **fields)

    return make


@pytest.fixture
def run(tmp_path: Path, runs: CaptionRuns) -> CaptionRun:
    return upload_and_ask(tmp_path, runs)


def upload_and_ask(
    tmp_path: Path, runs: CaptionRuns, model: str = "m", **fields: Any
) -> CaptionRun:
    """Store an upload of two images and a damaged one, and record a run."""
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("cat.png", "sub/dog.png"):
            data = io.BytesIO()
            color = "red" if name == "cat.png" else "blue"
            Image.new("RGB", (80, 48), color).save(data, "PNG")
            file.writestr(name, data.getvalue())
        file.writestr("damaged.png", b"\x89PNG\r\n\x1a\n")
        file.writestr("cat.txt", b"an old caption")
    store = Store((tmp_path / "store").as_uri())
    StoredUploads(store, "acme").put(UPLOAD, "images.zip", archive, "0" * 64)
    values = {
        "tenant": "acme",
        "upload": UPLOAD,
        "files": None,
        "style": "detailed",
        "queue": "gpu.8gb",
        "model": CaptionModel(model=model, max_tokens=8),
    }
    return runs.create(CaptionRequestDocument.model_validate(values | fields))[0]


def current(runs: CaptionRuns, run: CaptionRun) -> CaptionRun:
    found = runs.get(run.id)
    assert found is not None
    return found


def never() -> bool:
    return False


def test_a_real_trainer_writes_the_captions_of_an_upload(
    tmp_path: Path, runs: CaptionRuns, make_worker: Callable[..., WorkerContext]
) -> None:
    model = tmp_path / "model"
    command = [sys.executable, "-P", "-m", "tests.worker.trainer.caption_models", str(model)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[3])
    run = upload_and_ask(tmp_path, runs, str(model))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pool = TrainerPool(env, restarts=0, limits=Limits(), max_requests=2)
    try:
        outcome = write_captions(run.id, make_worker(pool), never)
    finally:
        pool.close()
    ended = current(runs, run)
    assert (ended.state, ended.done, ended.total, ended.error) == ("done", 2, 2, None)
    assert outcome == Discarded("2 images have captions")
    captions = runs.captions(run.id)
    assert captions.keys() == {"cat.png", "sub/dog.png"}
    assert all(captions.values())
    assert not list((tmp_path / "scratch").iterdir())


def test_only_the_named_images_have_captions(
    tmp_path: Path, runs: CaptionRuns, make_worker: Callable[..., WorkerContext]
) -> None:
    run = upload_and_ask(tmp_path, runs, files=("sub/dog.png", "unknown.png"))
    write_captions(run.id, make_worker(Captioner()), never)
    assert runs.captions(run.id) == {"sub/dog.png": "a sub/dog.png"}
    other = upload_and_ask(tmp_path, runs, files=("unknown.png",))
    write_captions(other.id, make_worker(Captioner()), never)
    failed = current(runs, other)
    assert failed.state == "failed"
    assert "none of them is an image of the upload" in str(failed.error)


def test_gpu_memory_is_limited_to_the_class(
    runs: CaptionRuns, run: CaptionRun, make_worker: Callable[..., WorkerContext]
) -> None:
    trainer = Captioner()
    write_captions(run.id, make_worker(trainer, device="cuda"), never)
    [request] = trainer.requests
    assert (request.device, request.limit_gib) == ("cuda", 7.25)


def test_interrupted_run_resumes_with_another_worker(
    runs: CaptionRuns, run: CaptionRun, make_worker: Callable[..., WorkerContext]
) -> None:
    trainer = Captioner(TrainerInterrupted())
    assert isinstance(write_captions(run.id, make_worker(trainer), never), Requeued)
    waiting = current(runs, run)
    # A worker that stops costs no attempt.
    assert (waiting.state, waiting.attempts) == ("waiting", 0)
    assert runs.captions(run.id) == {"cat.png": "a cat.png"}
    write_captions(run.id, make_worker(trainer), never)
    assert current(runs, run).state == "done"
    assert len(runs.captions(run.id)) == 2


def test_running_captions_keep_a_worker_wanted(
    runs: CaptionRuns,
    run: CaptionRun,
    make_worker: Callable[..., WorkerContext],
    redis_client: Redis,
) -> None:
    seen = []
    trainer = Captioner()
    trainer.on_image = lambda: seen.append(read_fleet(redis_client))
    write_captions(run.id, make_worker(trainer), never)
    assert [it.running for it in seen] == [[Running("gpu.8gb", "w", "acme")]] * 2
    assert seen[0].workers_wanted()["gpu.8gb"] == 1
    after = read_fleet(redis_client)
    assert (after.running, after.workers_wanted()["gpu.8gb"]) == ([], 0)
    counts = Counters(redis_client, timedelta(hours=1)).read()
    assert CAPTION_RUNS.one("done").items() <= counts.items()


def test_unhealthy_gpu_leaves_the_run_to_another_worker(
    runs: CaptionRuns, run: CaptionRun, make_worker: Callable[..., WorkerContext]
) -> None:
    outcome = write_captions(run.id, make_worker(Captioner(), services=Unhealthy()), never)
    assert isinstance(outcome, Requeued)
    assert current(runs, run).state == "waiting"


def test_one_worker_at_a_time_writes_captions(
    runs: CaptionRuns, run: CaptionRun, make_worker: Callable[..., WorkerContext]
) -> None:
    outcomes = []
    trainer, other = Captioner(), Captioner()
    trainer.on_image = lambda: outcomes.append(write_captions(run.id, make_worker(other), never))
    write_captions(run.id, make_worker(trainer), never)
    assert [type(outcome) for outcome in outcomes] == [RetriedAfterDelay] * 2
    assert other.requests == []
    # Delivered again after its end.
    assert isinstance(write_captions(run.id, make_worker(other), never), Discarded)
    assert other.requests == []


def test_run_that_just_ended_does_not_begin_again(
    runs: CaptionRuns,
    run: CaptionRun,
    make_worker: Callable[..., WorkerContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lease_after_its_end(run_id: str, ttl_s: float) -> Lock:
        runs.finish(run)
        return CaptionRuns.lease(runs, run_id, ttl_s)

    monkeypatch.setattr(runs, "lease", lease_after_its_end)
    trainer = Captioner()
    assert isinstance(write_captions(run.id, make_worker(trainer), never), Discarded)
    assert trainer.requests == []
    assert current(runs, run).state == "done"


def test_cancelled_run_stops_and_leaves_nothing(
    runs: CaptionRuns,
    run: CaptionRun,
    make_worker: Callable[..., WorkerContext],
    redis_client: Redis,
) -> None:
    trainer = Captioner()
    trainer.on_image = lambda: runs.remove(run)
    outcome = write_captions(run.id, make_worker(trainer), never)
    assert outcome == Discarded("it was cancelled")
    assert redis_client.keys("training:captions:*") == []
    assert read_fleet(redis_client).running == []


def test_errors_end_a_run_and_transient_ones_are_retried(
    tmp_path: Path,
    runs: CaptionRuns,
    run: CaptionRun,
    make_worker: Callable[..., WorkerContext],
) -> None:
    away = StoreError("the store is away")
    worker = make_worker(Captioner(*[away] * MAX_ATTEMPTS))
    for _ in range(MAX_ATTEMPTS - 1):
        assert isinstance(write_captions(run.id, worker, never), RetriedAfterDelay)
    assert isinstance(write_captions(run.id, worker, never), Discarded)
    assert current(runs, run).error == "the store is away"
    other = upload_and_ask(tmp_path, runs)
    refused = make_worker(Captioner(TrainerError("its type is 'evil'", "caption")))
    write_captions(other.id, refused, never)
    assert current(runs, other).error == "its type is 'evil'"


def test_run_whose_workers_are_lost_fails(
    runs: CaptionRuns, run: CaptionRun, make_worker: Callable[..., WorkerContext]
) -> None:
    for attempts in range(MAX_ATTEMPTS):
        runs.begin(run.model_copy(update={"attempts": attempts}))
    trainer = Captioner()
    assert isinstance(write_captions(run.id, make_worker(trainer), never), Discarded)
    assert trainer.requests == []
    assert "were lost" in str(current(runs, run).error)


def test_worker_without_the_libraries_fails_the_run_with_the_remedy(
    runs: CaptionRuns,
    run: CaptionRun,
    make_worker: Callable[..., WorkerContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    trainer = Captioner()
    write_captions(run.id, make_worker(trainer), never)
    assert trainer.requests == []
    assert "pip install 'training-worker[train]'" in str(current(runs, run).error)


def test_upload_that_is_gone_fails_the_run(
    tmp_path: Path, runs: CaptionRuns, run: CaptionRun, make_worker: Callable[..., WorkerContext]
) -> None:
    StoredUploads(Store((tmp_path / "store").as_uri()), "acme").delete(UPLOAD)
    write_captions(run.id, make_worker(Captioner()), never)
    assert "no such upload" in str(current(runs, run).error)
