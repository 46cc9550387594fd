"""The plan's ``process_training_job``, on a fleet."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ErrorCode, JobError
from tests.integration.fleets import PATIENCE_S, Fleet
from worker.training_worker import process_flux_lora_job

EXAMPLE = Path(__file__).parents[2] / "examples" / "process_training_job.py"


def test_the_example_trains_by_one_call(fleet: Fleet, tiny_model: Path, images: Path) -> None:
    options = ("--model", str(tiny_model), "--resolution", "256", "--steps", "2")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(images), *options],
        env=fleet.env,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, f"{done}\n{fleet.log()}"
    assert "train on gpu-40gb-0" in done.stdout
    assert "step 2 of 2: loss" in done.stdout
    published = done.stdout.splitlines()[-1].removeprefix("completed: ")
    assert Path(published).is_file()


def test_a_job_that_cannot_run_raises_its_error(
    fleet: Fleet, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_HOME", str(fleet.home))
    del job["training"]["save_every_n_steps"]
    job["training"]["data_loader"]["dataset"]["dataset_dir"] = "/nowhere"
    with pytest.raises(JobError) as caught:
        process_flux_lora_job(job["training"])
    assert caught.value.code == ErrorCode.INVALID_DATASET
    assert "save_every_n_steps" not in job["training"]
