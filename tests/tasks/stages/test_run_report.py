"""What a training reports to trackers, and that none of them decides its end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.access.tenant_secrets import TenantSecrets
from tasks.errors import ErrorCode, TrainerError
from tasks.events import Artifact, Note, Progress, ValidationImages
from tasks.stages.cache import cache
from tasks.stages.outcomes import Failed
from tasks.stages.prepare import prepare
from tasks.stages.run_report import tracker_problems
from tasks.stages.submit import submit
from tasks.stages.train import train
from tasks.stages.worker_context import Tracker, WorkerContext, WorkerServices
from tasks.state.job_store import JobStore
from tasks.store import Store
from tasks.tracking import TrackerRequest
from tests.tasks.stages.test_runner import (
    CACHES,
    TRAINED,
    ScriptedTrainer,
    empty_dataset,
    leave,
    outcome_of,
    run_stage,
    saved,
    worker_with,
)

MLFLOW = '{"address": "https://1.1.1.1", "username": "me", "password": "hidden"}'


@dataclass
class RecordingTracker:
    """A tracker that keeps what it gets, and reports one failure."""

    request: TrackerRequest
    sent: list[Any] = field(default_factory=list)
    end: str | None = None
    failure: str | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(dict(message))

    def send_image(self, step: int, caption: str, download: Callable[[], str | None]) -> None:
        path = download()
        self.sent.append((step, caption, path and Path(path).read_bytes()))

    def warning(self) -> str | None:
        failure, self.failure = self.failure, None
        return failure

    def close(self, end: str) -> None:
        self.end = end


@dataclass
class Services(WorkerServices):
    """The services of a worker with recording trackers."""

    failure: str | None = None
    trackers: list[RecordingTracker] = field(default_factory=list)

    def open_tracker(self, request: TrackerRequest) -> Tracker | None:
        self.trackers.append(RecordingTracker(request, failure=self.failure))
        return self.trackers[-1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.tracking.is_installed", lambda module: True)


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def worker(state: JobStore, store: Store, tmp_path: Path, services: Services) -> WorkerContext:
    own = tmp_path / "secrets" / "tenants" / "acme"
    own.mkdir(parents=True)
    (own / "mlflow").write_text(MLFLOW)
    store.put("jobs/x/image.png", b"image")
    image = Artifact(
        name="validation-000010-1-1.png", key="jobs/x/image.png", sha256="0" * 64, size=5
    )
    trainer = ScriptedTrainer(
        Progress(stage="train", done=10, total=20, unit="steps", loss=0.5, learning_rate=1e-4),
        ValidationImages(step=10, images=(image,)),
        saved(store, 20),
        TRAINED,
    )
    made = worker_with(state, store, tmp_path, trainer)
    return replace(made, secrets=TenantSecrets(tmp_path / "secrets"), services=services)


def ready(worker: WorkerContext, document: dict[str, Any], report_to: str) -> str:
    """A job of acme whose training comes next."""
    document |= {"tenant": "acme"}
    document["training"] |= {**dict.fromkeys(CACHES, False), "report_to": report_to}
    job_id = submit(document, worker.state, "result").job_id
    run_stage("prepare", leave(dataset=empty_dataset(worker.store)), job_id, worker)
    run_stage("cache", cache, job_id, worker)
    return job_id


@pytest.mark.parametrize("report_to", ["mlflow", "all"])
def test_steps_and_images_are_reported(
    worker: WorkerContext, services: Services, job_document: dict[str, Any], report_to: str
) -> None:
    job_id = ready(worker, job_document, report_to)
    run_stage("train", train, job_id, worker)
    (tracker,) = services.trackers
    assert tracker.sent == [
        {"step": 10, "values": {"train/loss": 0.5, "train/learning_rate": 1e-4}},
        (10, "1-1", b"image"),
    ]
    assert (tracker.end, tracker.request.job_id) == ("succeeded", job_id)
    config = tracker.request.config
    assert config["lora_rank_dim"]
    assert "dataset_dir" not in config["data_loader"]["dataset"]
    assert "hidden" not in repr(tracker.request)


def test_a_failed_tracker_is_one_warning_and_no_failure(
    worker: WorkerContext, services: Services, job_document: dict[str, Any]
) -> None:
    services.failure = "the run is no longer reported"
    job_id = ready(worker, job_document, "mlflow")
    run_stage("train", train, job_id, worker)
    notes = [it.message for _, it in worker.state.events(job_id) if isinstance(it, Note)]
    assert notes.count("the run is no longer reported") == 1


def test_a_worker_without_the_secret_trains(
    worker: WorkerContext, services: Services, job_document: dict[str, Any]
) -> None:
    job_id = ready(worker, job_document, "mlflow")
    run_stage("train", train, job_id, replace(worker, secrets=TenantSecrets()))
    notes = [it.message for _, it in worker.state.events(job_id) if isinstance(it, Note)]
    assert any("the run is not reported" in note for note in notes)
    assert services.trackers == []


def test_a_failed_training_ends_its_run(
    worker: WorkerContext, services: Services, job_document: dict[str, Any]
) -> None:
    job_id = ready(worker, job_document, "mlflow")
    crashing = ScriptedTrainer(ends=TrainerError("x", "train"))
    assert isinstance(outcome_of("train", train, job_id, replace(worker, trainer=crashing)), Failed)
    assert services.trackers[0].end == "failed"


def test_a_worker_without_the_library_says_so(
    worker: WorkerContext, job_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.tracking.is_installed", lambda module: False)
    job_id = ready(worker, job_document, "mlflow")
    outcome = outcome_of("train", train, job_id, worker)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == ErrorCode.NOT_INSTALLED
    assert "training-worker[mlflow]" in outcome.error.message


@pytest.mark.parametrize(
    ("report_to", "secret", "message"),
    [
        ("wandb", None, "tenants/acme/wandb of TRAINING_SECRETS_DIR"),
        ("mlflow", '{"address": "http://10.0.0.1:5000"}', "is no https:// address"),
        ("mlflow", '{"address": "https://10.0.0.1"}', "which is not public"),
        ("mlflow", '{"adress": "https://1.1.1.1"}', "is malformed: address, adress"),
        ("mlflow", "hidden", "is malformed: JSON"),
        ("mlflow", '{"address": "https://1.1.1.1", "token": "hidden\\n"}', "malformed: token"),
        ("wandb", "hidden\nhidden", "is malformed: api_key"),
    ],
)
def test_secrets_are_checked_before_a_gpu_is_used(
    worker: WorkerContext,
    job_document: dict[str, Any],
    tmp_path: Path,
    report_to: str,
    secret: str | None,
    message: str,
) -> None:
    if secret is not None:
        (tmp_path / "secrets" / "tenants" / "acme" / report_to).write_text(secret)
    job_document |= {"tenant": "acme"}
    job_document["training"]["report_to"] = report_to
    job_id = submit(job_document, worker.state, "result").job_id
    outcome = outcome_of("prepare", prepare, job_id, worker)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == ErrorCode.INVALID_DESTINATION
    assert message in outcome.error.message
    assert "hidden" not in outcome.error.message


def test_a_tracker_that_is_not_resolved_ends_no_job(
    worker: WorkerContext, services: Services, job_document: dict[str, Any], tmp_path: Path
) -> None:
    secret = '{"address": "https://tracker.invalid"}'
    (tmp_path / "secrets" / "tenants" / "acme" / "mlflow").write_text(secret)
    job_id = ready(worker, job_document, "mlflow")
    assert list(tracker_problems(worker.state.get(job_id).job, worker)) == []
    run_stage("train", train, job_id, worker)
    assert services.trackers == []
