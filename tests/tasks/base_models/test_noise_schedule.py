"""What single files and folders say of their noise schedule, and what a job makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.base_models.noise_schedule import NoiseSchedule, noise_notes, noise_schedule
from tasks.errors import BaseModelFilesError
from tests.tasks.base_models.files import safetensors_file
from tests.worker.trainer.runs import sdxl_config_of

EPSILON = NoiseSchedule("epsilon", False)
VELOCITY = NoiseSchedule("v_prediction", False)
ZERO_SNR = NoiseSchedule("v_prediction", True)
ZERO_SNR_CONFIG = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def described(folder: Path, **values: Any) -> Path:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir(parents=True, exist_ok=True)
    scheduler.write_text(json.dumps(values), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("names", "metadata", "given", "expected", "note"),
    [
        ((), {}, None, EPSILON, ""),
        ((), {}, "v_prediction", VELOCITY, ""),
        (("v_pred",), {}, None, VELOCITY, "predicts velocities; the run does"),
        (("v_pred", "ztsnr"), {}, None, ZERO_SNR, "zero terminal SNR"),
        (("v_pred", "ztsnr"), {}, "v_prediction", ZERO_SNR, "zero terminal SNR"),
        (("v_pred", "ztsnr"), {}, "epsilon", EPSILON, "epsilon replaces v_prediction"),
        # Pure noise says nothing of the image to a UNet that predicts noise.
        (("ztsnr",), {}, None, EPSILON, "the run uses SDXL's own levels"),
        (("ztsnr",), {}, "v_prediction", ZERO_SNR, ""),
        ((), {"modelspec.prediction_type": "v"}, None, VELOCITY, "predicts velocities"),
        ((), {"modelspec.prediction_type": "epsilon"}, "v_prediction", VELOCITY, "replaces"),
    ],
)
def test_a_single_file_decides_its_schedule(
    tmp_path: Path,
    names: tuple[str, ...],
    metadata: dict[str, str],
    given: str | None,
    expected: NoiseSchedule,
    note: str,
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"w": (2,), **dict.fromkeys(names, (0,))}
    file = safetensors_file(tmp_path / "whole.safetensors", shapes, metadata=metadata)
    folder = described(tmp_path / "config", prediction_type="epsilon")
    config = sdxl_config_of(
        "SDXL_LORA", file, single_file_config=str(folder), prediction_type=given
    )
    assert noise_schedule(config) == expected
    assert note in "".join(map(str, noise_notes(config)))
    assert bool(note) == bool(noise_notes(config))


@pytest.mark.parametrize(
    ("values", "given", "expected", "notes"),
    [
        ({}, None, EPSILON, 0),
        ({"rescale_betas_zero_snr": True}, None, EPSILON, 1),
        ({"prediction_type": "v_prediction"}, None, VELOCITY, 0),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, None, ZERO_SNR, 0),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            "epsilon",
            EPSILON,
            1,
        ),
    ],
)
def test_a_folders_scheduler_decides_its_schedule(
    tmp_path: Path, values: dict[str, Any], given: str | None, expected: NoiseSchedule, notes: int
) -> None:
    config = sdxl_config_of("SDXL_LORA", described(tmp_path, **values), prediction_type=given)
    assert noise_schedule(config) == expected
    assert len(noise_notes(config)) == notes


def test_an_unknown_prediction_needs_the_jobs_own(tmp_path: Path) -> None:
    folder = described(tmp_path, prediction_type="sample")
    with pytest.raises(BaseModelFilesError, match="set prediction_type"):
        noise_schedule(sdxl_config_of("SDXL_LORA", folder))
    config = sdxl_config_of("SDXL_LORA", folder, prediction_type="epsilon")
    assert noise_schedule(config) == EPSILON


def test_zero_snr_is_sampled_from_the_last_level() -> None:
    assert ZERO_SNR.scheduler_values["timestep_spacing"] == "trailing"
    assert "timestep_spacing" not in VELOCITY.scheduler_values
