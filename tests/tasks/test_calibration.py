import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from routing.classes import MemoryClass
from routing.estimate import PUBLISHED
from tasks.calibration import read_calibration
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.job_store import JobStore

TOO_MUCH = {"version": 1, "constants": {"flux_overhead_bytes": 45e9}}


def file_of(folder: Path, content: Any) -> Path:
    path = folder / "calibration.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_a_calibration_replaces_only_its_constants(tmp_path: Path) -> None:
    replaced = read_calibration(file_of(tmp_path, TOO_MUCH)).replaced()
    assert replaced.flux_overhead_bytes == 45e9
    same = {name: value for name, value in vars(replaced).items() if name != "flux_overhead_bytes"}
    assert same.items() <= vars(PUBLISHED).items()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Invalid JSON"),
        ([], "is not a valid calibration"),
        ({"constants": {}}, "version: Field required"),
        ({"version": 2, "constants": {}}, "version: Input should be 1"),
        ({"version": 1}, "constants: Field required"),
        (
            {"version": 1, "constants": {"overhead": 1}},
            "unknown constants: overhead",
        ),
        ({"version": 1, "constants": {"flux_overhead_bytes": -1}}, "greater than or equal to 0"),
        ({"version": 1, "constants": {"flux_overhead_bytes": "1"}}, "should be a valid number"),
        ({"version": 1, "constants": {"flux_overhead_bytes": 1e16}}, "less than or equal to"),
        ('{"version": 1, "constants": {"flux_overhead_bytes": NaN}}', "flux_overhead_bytes"),
        ({"version": 1, "constants": {}, "more": 1}, "more: Extra inputs"),
    ],
)
def test_an_invalid_calibration_is_refused_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str
) -> None:
    monkeypatch.setenv("TRAINING_CALIBRATION", str(file_of(tmp_path, content)))
    with pytest.raises(ValidationError, match="calibration") as caught:
        Settings()
    assert said in str(caught.value)
    assert "calibration.json" in str(caught.value)


def test_a_missing_calibration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_CALIBRATION", str(tmp_path / "nowhere.json"))
    with pytest.raises(ValidationError, match="No such file"):
        Settings()


def test_the_published_constants_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINING_CALIBRATION", raising=False)
    assert Settings().constants is PUBLISHED


def test_a_recorded_route_does_not_change(
    state: JobStore,
    job_document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINING_CALIBRATION", str(file_of(tmp_path, TOO_MUCH)))
    settings = Settings()
    calibrated = JobStore(state._redis, settings.job_ttl, settings.constants)
    job_id, job, _ = submit(job_document, calibrated, "result")
    assert job.route().memory_class == MemoryClass.GB40
    record = state.get(job_id)  # as one reads it who has no calibration
    assert record.gpu_queue == "gpu.80gb"
    assert record.estimate == job.training.estimate(settings.constants)
