from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import events
from tasks.errors import ErrorCode, StoreError, UnreadableFileError
from tasks.eta.history import WorkDone
from tasks.stages import train as train_stage
from tasks.stages.cache import cache
from tasks.stages.outcomes import Done, Failed, Requeued, StageOutcome
from tasks.stages.submit import submit
from tasks.stages.train import train
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import TrainerInterrupted, WorkerContext, WorkerServices
from tasks.state.job_store import JobStore
from tasks.store import Store
from tests.tasks.stages.test_cache import Encoder, Job, document, job_of, pack_index
from tests.tasks.stages.test_runner import (
    CACHES,
    TRAINED,
    ScriptedTrainer,
    empty_dataset,
    job_id,
    leave,
    outcome_of,
    run_stage,
    saved,
    store,
    worker_with,
)

__all__ = ["document", "job_id", "job_of", "pack_index", "store"]


def steps(*numbers: int) -> list[events.Event]:
    return [
        events.Progress(stage="train", done=number, total=20, unit="steps") for number in numbers
    ]


@pytest.fixture
def made() -> dict[str, WorkDone]:
    return {}


@pytest.fixture
def worker(
    state: JobStore, store: Store, tmp_path: Path, job_id: str, made: dict[str, WorkDone]
) -> WorkerContext:
    """That of a job that is to be trained."""

    class Recorder(WorkerServices):
        def record_run(self, record: Any, stage: str, stage_record: Any, work: WorkDone) -> None:
            made[stage] = work

    idle = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, idle)
    run_stage("cache", cache, job_id, idle)
    return replace(idle, services=Recorder())


def test_a_resumed_start_records_only_its_own_steps(
    worker: WorkerContext, store: Store, job_id: str, made: dict[str, WorkDone]
) -> None:
    first = ScriptedTrainer(*steps(1, 10), saved(store, 10), ends=TrainerInterrupted())
    outcome = outcome_of("train", train, job_id, replace(worker, trainer=first))
    assert isinstance(outcome, Requeued)
    assert made == {}
    second = ScriptedTrainer(*steps(11, 20), saved(store, 20), TRAINED)
    run_stage("train", train, job_id, replace(worker, trainer=second))
    assert made["train"].units == 10
    assert made["train"].unit_s is not None


def test_validation_and_restarts_are_no_part_of_a_step(
    worker: WorkerContext, store: Store, job_id: str, made: dict[str, WorkDone]
) -> None:
    images = events.ValidationImages(step=10, images=())
    again = events.Note(level="warning", message="restarted")
    reported = (*steps(10), images, *steps(11), again, *steps(20), saved(store, 20), TRAINED)
    run_stage("train", train, job_id, replace(worker, trainer=ScriptedTrainer(*reported)))
    assert made["train"] == WorkDone(20, None)


class DamagedTrainer(Encoder):
    """Encodes as ``Encoder`` does; its train requests fail with one error after the other."""

    def __init__(self, store: Store, *errors: Exception) -> None:
        super().__init__(store)
        self.errors = list(errors)
        self.resumed_from: list[str | None] = []

    def run(self, request: TrainerRequest, **calls: Any) -> events.CacheDone | events.TrainDone:
        if request.stage == "cache":
            return super().run(request, **calls)
        self.resumed_from.append(request.resume_state_key)
        if self.errors:
            raise self.errors.pop(0)
        calls["on_event"](saved(self._store, 20))
        return TRAINED


def unreadable(key: str) -> UnreadableFileError:
    return UnreadableFileError(f"{key} is damaged", "train", key)


def start_train(job: Job, trainer: DamagedTrainer | ScriptedTrainer) -> StageOutcome:
    worker = replace(job.worker(Encoder(job.store)), trainer=trainer)
    return outcome_of("train", train, job.id, worker)


@pytest.fixture
def shared_pack(job_of: Callable[..., Job], store: Store) -> tuple[Job, str]:
    """A job with a checkpoint, and a pack that holds entries of another job as well."""
    job_of(20).cache(Encoder(store))
    job = job_of(3)
    job.cache(Encoder(store))
    interrupted = ScriptedTrainer(saved(store, 10), ends=TrainerInterrupted())
    assert isinstance(start_train(job, interrupted), Requeued)
    return job, sorted(set(job.index().packs.values()))[0]


def test_a_run_recovers_from_a_damaged_pack_and_checkpoint(
    shared_pack: tuple[Job, str], store: Store
) -> None:
    job, pack = shared_pack
    store.put(pack, b"damaged")
    checkpoint = saved(store, 10).state_key
    trainer = DamagedTrainer(store, unreadable(pack), unreadable(checkpoint))
    assert isinstance(start_train(job, trainer), Done)
    assert trainer.resumed_from == [checkpoint, checkpoint, None]
    assert pack not in job.index().packs.values()


def test_a_run_recovers_from_each_damaged_file_once(
    shared_pack: tuple[Job, str], store: Store
) -> None:
    job, pack = shared_pack
    store.put(pack, b"damaged")
    trainer = DamagedTrainer(store, *[unreadable(pack)] * 9)
    outcome = start_train(job, trainer)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == ErrorCode.UNREADABLE_FILE
    assert len(trainer.resumed_from) == 2


def test_a_run_gives_up_in_a_store_that_damages_every_file(
    shared_pack: tuple[Job, str], store: Store
) -> None:
    job, _ = shared_pack

    class DamagingStore(DamagedTrainer):
        def run(self, request: TrainerRequest, **calls: Any) -> events.CacheDone | events.TrainDone:
            if request.stage == "train":
                pack = min(job.index().packs.values())
                store.put(pack, b"damaged")
                self.errors = [unreadable(pack)]
            return super().run(request, **calls)

    trainer = DamagingStore(store)
    outcome = start_train(job, trainer)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == ErrorCode.UNREADABLE_FILE
    assert len(trainer.resumed_from) <= 11


def test_packs_of_a_run_are_in_use_from_its_first_moment(
    shared_pack: tuple[Job, str], store: Store
) -> None:
    job, _ = shared_pack
    index = job.worker(Encoder(store)).pack_index
    before = {it.key: it.used_at for it in index.packs()}

    class Asking(DamagedTrainer):
        def run(self, request: TrainerRequest, **calls: Any) -> events.CacheDone | events.TrainDone:
            calls["stop_requested"]()
            return super().run(request, **calls)

    assert isinstance(start_train(job, Asking(store)), Done)
    used = {it.key: it.used_at for it in index.packs()}
    assert all(used[key] > before[key] for key in job.index().packs.values())


def images(store: Store, step: int, count: int) -> events.ValidationImages:
    keys = [f"jobs/x/validation/{step}/{number}.png" for number in range(count)]
    for key in keys:
        store.put(key, b"image")
    found = [events.Artifact(name=key[-5:], key=key, sha256="0" * 64, size=5) for key in keys]
    return events.ValidationImages(step=step, images=tuple(found))


def test_the_record_of_a_run_is_bounded(
    worker: WorkerContext,
    store: Store,
    state: JobStore,
    job_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_stage, "_MAX_CHECKPOINTS", 3)
    monkeypatch.setattr(train_stage, "_MAX_IMAGES", 5)
    reported = [
        event
        for step in range(10, 80, 10)
        for event in (saved(store, step), images(store, step, 2))
    ]
    trainer = ScriptedTrainer(*reported, TRAINED)
    run_stage("train", train, job_id, replace(worker, trainer=trainer))
    artifacts = state.get(job_id).artifacts
    assert [checkpoint.step for checkpoint in artifacts.checkpoints] == [50, 60, 70]
    assert [validation.step for validation in artifacts.validations] == [60, 70]
    assert not store.exists("jobs/x/40/state")
    assert not store.exists("jobs/x/validation/50/1.png")
    assert store.exists("jobs/x/validation/60/1.png")
    notes = [event.message for _, event in state.events(job_id) if isinstance(event, events.Note)]
    assert sorted(notes) == [
        "only the newest 3 checkpoints are kept",
        "only the newest 5 validation images are kept",
    ]


def test_a_failure_to_remove_old_checkpoints_ends_no_run(
    state: JobStore,
    store: Store,
    tmp_path: Path,
    job_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_document["training"] |= {"max_checkpoints": 1, **dict.fromkeys(CACHES, False)}
    job_id = submit(job_document, state, "result").job_id
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", cache, job_id, worker)
    refused: list[str] = []

    def refuse(keys: Iterable[str]) -> None:
        refused.extend(keys)
        raise StoreError("the store is read-only")

    monkeypatch.setattr(store, "delete", refuse)
    trainer = ScriptedTrainer(saved(store, 10), saved(store, 20), TRAINED)
    run_stage("train", train, job_id, replace(worker, trainer=trainer))
    assert refused == ["jobs/x/10/state", "jobs/x/10/lamp.safetensors"]
