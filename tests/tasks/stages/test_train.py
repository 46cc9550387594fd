from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import events
from tasks.eta.history import WorkDone
from tasks.stages.cache import cache
from tasks.stages.outcomes import Requeued
from tasks.stages.train import train
from tasks.stages.worker_context import TrainerInterrupted, WorkerContext, WorkerServices
from tasks.state.job_store import JobStore
from tasks.store import Store
from tests.tasks.stages.test_runner import (
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

__all__ = ["job_id", "store"]


def steps(*numbers: int) -> list[events.Event]:
    return [events.Progress(stage="train", done=it, total=20, unit="steps") for it in numbers]


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


def test_a_start_that_went_on_from_a_checkpoint_tells_of_its_own_steps_only(
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


def test_validation_images_and_another_trainer_count_for_no_step(
    worker: WorkerContext, store: Store, job_id: str, made: dict[str, WorkDone]
) -> None:
    images = events.ValidationImages(step=10, images=())
    again = events.Note(level="warning", message="it is started again")
    told = (*steps(10), images, *steps(11), again, *steps(20), saved(store, 20), TRAINED)
    run_stage("train", train, job_id, replace(worker, trainer=ScriptedTrainer(*told)))
    assert made["train"] == WorkDone(20, None)
