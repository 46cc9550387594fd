from typing import Any

import pytest

from routing.classes import MemoryClass
from routing.policy import TrainingType
from tasks.eta.estimate import Basis, forecast
from tasks.eta.history import RunHistory, RunSample, workload_key
from tasks.eta.published import published_speed
from tasks.jobs.job import preset_job
from tasks.jobs.presets import preset_names

HOUR_S = 3600
EMPTY = RunHistory({}, {})


def train_part(name: str, history: RunHistory = EMPTY) -> Any:
    job = preset_job(name)
    parts = forecast(job.training, job.route().gpu_queue, history, [20]).stages
    return next(part for part in parts if part.stage == "train")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_a_published_time_with_its_source(name: str) -> None:
    part = train_part(name)
    assert part.basis is Basis.PUBLISHED
    assert part.reference
    assert HOUR_S / 4 < part.seconds < 48 * HOUR_S
    assert part.unknown is None


def test_flux_takes_longer_than_sdxl() -> None:
    ratio = train_part("flux_lora_1x80gb").seconds / train_part("sdxl_lora_1x24gb").seconds
    assert 2 <= ratio <= 8


def test_a_run_of_the_fleet_replaces_a_published_time() -> None:
    key = workload_key(preset_job("flux_lora_1x40gb").training, "train", MemoryClass.GB40)
    history = RunHistory({key: [RunSample(unit_s=2.0, overhead_s=0)]}, {})
    part = train_part("flux_lora_1x40gb", history)
    assert (part.seconds, part.basis, part.reference) == (2000, Basis.MEASURED, None)
    scaled = train_part("flux_lora_1x24gb", history)
    assert scaled.basis is Basis.MEASURED  # as many samples and pixels
    other = key.model_copy(update={"samples": 8})
    scaled = train_part("flux_lora_1x40gb", RunHistory({other: history.runs[key]}, {}))
    assert (scaled.seconds, scaled.basis) == (1000, Basis.SCALED)


def test_an_emulated_gpu_has_no_published_time() -> None:
    part = train_part("flux_lora_1x40gb", RunHistory({}, {}, frozenset({MemoryClass.GB40})))
    assert (part.seconds, part.basis) == (None, None)


def test_only_training_on_a_gpu_is_published() -> None:
    training = preset_job("flux_lora_1x40gb").training
    assert published_speed(workload_key(training, "cache", MemoryClass.GB40)) is None
    assert published_speed(workload_key(training, "prepare", None)) is None
    assert set(TrainingType) >= {training.type}
