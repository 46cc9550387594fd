from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.classes import MemoryClass
from tasks.eta.estimate import (
    NO_IMAGES,
    NO_RUN,
    TAKES_LONGER,
    Forecast,
    JobProgress,
    expected_end,
    forecast,
    progress_of,
    time_left,
    units_of,
)
from tasks.eta.history import RunHistory, RunSample, workload_key
from tasks.events import DatasetChecked, Note, Progress
from tasks.jobs.job import parse_job
from tasks.jobs.pipeline import PipelineConfig
from tasks.state.record import JobRecord, JobStatus
from tests.tasks.eta.test_history import record_with, started

EMPTY = RunHistory({}, {})
STAGES = ("prepare", "cache", "train", "publish")
WAITS = {"cpu": [1.0, 2.0, 30.0], "gpu.40gb": [60.0]}


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def job_of(document: dict[str, Any], **options: Any) -> PipelineConfig:
    document["training"] |= options
    return parse_job(document).training


def history_of(training: PipelineConfig) -> RunHistory:
    """0.1 s an image, 20 s and 1 s an entry, 40 s and 2 s a step, 5 s to publish."""
    units = {"prepare": (0.1, 0), "cache": (1, 20), "train": (2, 40), "publish": (5, 0)}
    runs = {}
    for stage, (unit_s, overhead_s) in units.items():
        on = MemoryClass.GB40 if stage in ("cache", "train") else None
        runs[workload_key(training, stage, on)] = [RunSample(unit_s=unit_s, overhead_s=overhead_s)]
    return RunHistory(runs, WAITS)


@pytest.fixture
def training(job_document: dict[str, Any]) -> PipelineConfig:
    steps = {"max_train_steps": 100, "max_train_epochs": None}
    return job_of(job_document, cache_vae_outputs=True, **steps)


@pytest.fixture
def history(training: PipelineConfig) -> RunHistory:
    return history_of(training)


@pytest.fixture
def running(training: PipelineConfig, job_document: dict[str, Any]) -> JobRecord:
    """A job whose train stage started at second 2000."""
    stages = {
        "prepare": started(1, 1000, 1, "cpu"),
        "cache": started(2, 1010, 60, "gpu.40gb"),
        "train": started(3, 2000, None, "gpu.40gb"),
    }
    return record_with(job_document, stage="train", stages=stages)


def test_forecast_adds_waits_and_work(training: PipelineConfig, history: RunHistory) -> None:
    found = forecast(training, "gpu.40gb", history, [12, 8])
    assert [stage.seconds for stage in found.stages] == [2, 60, 240, 5]
    assert [stage.wait_s for stage in found.stages] == [2, 60, 60, 2]
    assert [stage.queue for stage in found.stages] == ["cpu", "gpu.40gb", "gpu.40gb", "cpu"]
    assert found.total_s == found.at_least_s == 431
    document = found.document()
    assert document["total_s"] == 431
    assert document["stages"][2] == {
        "stage": "train",
        "queue": "gpu.40gb",
        "wait_s": 60,
        "waits": 1,
        "seconds": 240,
        "runs": 1,
        "scaled_from": None,
        "unknown": None,
        "basis": "measured",
        "reference": None,
    }


def test_unknown_parts_make_the_total_unknown(
    training: PipelineConfig, history: RunHistory
) -> None:
    unseen = forecast(training, "gpu.40gb", history)
    assert [stage.unknown for stage in unseen.stages] == [NO_IMAGES, NO_IMAGES, None, None]
    assert unseen.total_s is None
    assert unseen.at_least_s == 2 + 60 + 60 + 240 + 2 + 5
    assert unseen.unknown == ["prepare", "cache"]
    on_80gb = forecast(training, "gpu.80gb", history, [20])
    assert on_80gb.unknown == ["wait in gpu.80gb", "cache"]
    assert on_80gb.stages[1].unknown == NO_RUN
    assert on_80gb.stages[2].basis == "published"


def test_scaled_statistics_name_their_source(
    job_document: dict[str, Any], training: PipelineConfig, history: RunHistory
) -> None:
    larger = training.model_copy(update={"train_batch_size": 2 * training.train_batch_size})
    train = forecast(larger, "gpu.40gb", history, [20]).stages[2]
    assert train.seconds == 440
    assert train.scaled_from == workload_key(training, "train", MemoryClass.GB40)
    assert Forecast((train,)).document()["stages"][0]["scaled_from"] == {
        "stage": "train",
        "type": "FLUX_LORA",
        "memory_class": "40gb",
        "resolution": "768x768",
        "samples": 4,
        "emulated": False,
    }


def test_epochs_count_batches_of_one_size(job_document: dict[str, Any]) -> None:
    epochs = {"max_train_steps": None, "max_train_epochs": 3, "train_batch_size": 4}
    training = job_of(job_document, gradient_accumulation_steps=2, **epochs)
    # 3 + 2 + 1 batches make 3 steps.
    assert units_of(training, "train", [9, 5, 1]) == 9
    assert units_of(training, "train") is None


def test_a_job_that_caches_nothing_encodes_nothing(
    job_document: dict[str, Any], history: RunHistory
) -> None:
    training = job_of(job_document, cache_text_encoder_outputs=False, cache_vae_outputs=False)
    assert forecast(training, "gpu.40gb", EMPTY).stages[1].seconds == 0


def test_a_running_stage_uses_its_own_speed(running: JobRecord, history: RunHistory) -> None:
    progress = Progress(stage="train", done=40, total=100, unit="steps", per_second=0.25)
    left = time_left(running, history, at(2100), JobProgress(progress=progress))
    assert left is not None
    assert [(stage.stage, stage.wait_s, stage.seconds) for stage in left.stages] == [
        ("train", 0, 240),
        ("publish", 2, 5),
    ]
    assert expected_end(running, history, at(2100), JobProgress(progress=progress)) == at(2347)


def test_before_its_first_step_a_stage_uses_other_runs(
    running: JobRecord, history: RunHistory
) -> None:
    cache_progress = Progress(stage="cache", done=1, total=100, unit="entries", per_second=9)
    left = time_left(running, history, at(2030), JobProgress(progress=cache_progress))
    assert left is not None
    assert left.stages[0].seconds == 210
    late = time_left(running, history, at(2241))
    assert late is not None
    assert (late.stages[0].seconds, late.stages[0].unknown) == (None, TAKES_LONGER)
    assert late.total_s is None


def test_a_waiting_job_uses_the_longer_waits(
    job_document: dict[str, Any], training: PipelineConfig, history: RunHistory
) -> None:
    queued = record_with(job_document, status=JobStatus.QUEUED, pending_queue="cpu")
    progress = JobProgress(sizes=[20])
    assert expected_end(queued, history, at(1000), progress) == at(1431)
    left = time_left(queued, history, at(1010), progress)
    assert left is not None
    assert (left.stages[0].wait_s, left.stages[0].waits) == (20, 1)
    # Longer than any recorded wait.
    assert expected_end(queued, history, at(1031), progress) is None
    retry = queued.model_copy(update={"due_at": at(1600)})
    assert expected_end(retry, history, at(1000), progress) == at(1600 + 431)


def test_a_resumed_train_stage_counts_the_steps_left(
    running: JobRecord, history: RunHistory
) -> None:
    waits = {"pending_queue": "gpu.40gb", "updated_at": at(2100)}
    progress = Progress(stage="train", done=40, total=100, unit="steps", per_second=0.25)
    interrupted = running.model_copy(update=waits)
    left = time_left(interrupted, history, at(2100), JobProgress(progress=progress))
    assert left is not None
    assert (left.stages[0].wait_s, left.stages[0].seconds) == (60, 40 + 60 * 2)


def test_a_fully_cached_job_waits_in_the_cpu_queue(
    job_document: dict[str, Any], history: RunHistory
) -> None:
    stages = {"prepare": started(1, 1000, 1, "cpu")}
    queues = {"pending_queue": "cpu", "cache_queue": "cpu"}
    record = record_with(job_document, stage="cache", stages=stages, **queues)
    left = time_left(record, history, at(1000))
    assert left is not None
    assert [(stage.queue, stage.seconds) for stage in left.stages[:2]] == [
        ("cpu", 0),
        ("gpu.40gb", 240),
    ]


def test_paused_and_ended_jobs_have_no_time_left(running: JobRecord, history: RunHistory) -> None:
    paused = running.model_copy(update={"status": JobStatus.PAUSED})
    assert time_left(paused, history, at(2100)) is None
    assert expected_end(paused, history, at(2100)) is None
    over = running.model_copy(update={"status": JobStatus.FAILED, "updated_at": at(2200)})
    assert time_left(over, history, at(9000)) is None
    assert expected_end(over, history, at(9000)) == at(2200)


def test_progress_has_images_and_newest_event() -> None:
    checked = DatasetChecked(images=7, errors=0, warnings=0, report_key="r")
    first, second = (Progress(stage="train", done=n, total=9, unit="steps") for n in (1, 2))
    progress = progress_of([checked, first, Note(level="info", message=""), second])
    assert progress == JobProgress(sizes=(7,), progress=second)


@given(
    status=st.sampled_from(JobStatus),
    stage=st.sampled_from(STAGES),
    waits=st.booleans(),
    now=st.floats(0, 1e6),
    done=st.integers(0, 200),
    per_second=st.none() | st.floats(1e-3, 1e3),
    known=st.booleans(),
)
def test_time_left_is_never_negative(
    status: JobStatus,
    stage: str,
    waits: bool,
    now: float,
    done: int,
    per_second: float | None,
    known: bool,
) -> None:
    loader = {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}}
    document = {"preset": "flux_lora_1x40gb", "training": {"model": "m", "data_loader": loader}}
    record = record_with(
        document,
        status=status,
        stage=stage,
        pending_queue="cpu" if waits else None,
        stages={stage: started(1, 1000, None, "cpu")},
    )
    history = history_of(record.job.training) if known else EMPTY
    progress = Progress(stage=stage, done=done, total=100, unit="steps", per_second=per_second)
    left = time_left(record, history, at(now), JobProgress([5], progress))
    if left is None:
        assert status not in (JobStatus.QUEUED, JobStatus.RUNNING)
        return
    parts = [it for stage in left.stages for it in (stage.wait_s, stage.seconds)]
    assert all(it is None or it >= 0 for it in parts)
    assert (left.total_s is None) == (None in parts)
