from datetime import UTC, datetime, timedelta

import pytest

from console.pages.formatting import PART_NAMES, REMEDIES, STAGE_NAMES, TYPE_NAMES, ago, size, span
from routing.policy import TrainingType
from tasks.contract import STAGES
from tasks.errors import ErrorCode
from tasks.jobs.job import parse_job


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "<0.1 s"), (3.21, "3.2 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h")],
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("length", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000_000, "2.0 GB")]
)
def test_sizes_have_a_unit(length: int, text: str) -> None:
    assert size(length) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "just now"), (300, "5 min ago"), (7300, "2 h ago"), (10**6, "2026-01-01")],
)
def test_past_moments_are_relative(seconds: int, text: str) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(moment, moment + timedelta(seconds=seconds)) == text


def test_stages_types_codes_and_parts_have_names() -> None:
    assert list(STAGE_NAMES) == list(STAGES)
    assert set(TYPE_NAMES) == set(TrainingType)
    assert set(REMEDIES) <= set(ErrorCode)
    dataset = {"type": "ARCHIVE", "archive": "https://example.org/images.zip"}
    training = {"data_loader": {"dataset": dataset}}
    job = parse_job({"preset": "flux_lora_1x40gb", "training": training | {"type": "FLUX_LORA"}})
    assert set(PART_NAMES) == set(job.training.estimate().parts())
