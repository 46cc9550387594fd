import math
from itertools import product
from typing import Any

import pytest

from tasks.jobs.job import parse_job
from tasks.jobs.presets import ALIASES, preset
from tasks.schemas.form import INTERFACES, memory_presets, table

DATASET = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
VALUES: dict[str, Any] = {
    "baseModel": "some/model",
    "batchSize": 2,
    "maxTrainSteps": 1001,
    "learningRate": 3e-5,
    "loraRank": 16,
    "loraCheckpointFormat": "invoke_peft",
    "trainTransformer": True,
    "trainTextEncoder": False,
    "weightDtype": "bfloat16",
    "gradientCheckpointing": True,
    "cacheTextEncoderOutputs": True,
    "cacheVaeOutputs": True,
    "timestepSampler": "shift",
    "discreteFlowShift": 2.5,
    "guidanceScale": 1.5,
    "lrScheduler": "cosine",
    "lrWarmupSteps": 7,
}


def put(part: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        part = part.setdefault(folder, {})
    part[last] = value


def at(part: Any, path: str) -> Any:
    for name in path.split("."):
        part = part[name]
    return part


def filled_in(training_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """A form's ``training`` part, as ``form.json`` says."""
    training: dict[str, Any] = {}
    for path, value in table()[training_type]["set"].items():
        put(training, path, value)
    for name, value in values.items():
        for target in table()[training_type]["fields"].get(name, ()):
            times = target.get("times")
            put(training, target["path"], value if times is None else math.ceil(value * times))
    put(training, "data_loader.dataset", DATASET)
    return training


@pytest.mark.parametrize(
    ("training_type", "resolution"), list(product(table(), (512, 768, 1024))), ids=str
)
def test_a_filled_in_form_is_a_job_that_does_as_the_form_says(
    training_type: str, resolution: int
) -> None:
    values = {**VALUES, "resolution": resolution}
    training = filled_in(training_type, values)
    if training_type == "SDXL_TEXTUAL_INVERSION":
        training |= {"placeholder_token": "<cat>", "initializer_token": "cat"}
        training["data_loader"]["caption_preset"] = "object"
    job = parse_job({"training": training}).model_dump(mode="json")["training"]
    for name, targets in table()[training_type]["fields"].items():
        if name in values:
            assert at(job, targets[0]["path"]) == values[name], name
    assert job["type"] == training_type
    assert job["save_every_n_steps"] == 251
    assert job["data_loader"]["aspect_ratio_buckets"]["target_resolution"] == resolution


def test_a_flux_form_has_a_place_for_every_field() -> None:
    named = {field.name for fields in INTERFACES.values() for field in fields}
    assert named - {"trainingType"} <= set(table()["FLUX_LORA"]["fields"])
    assert named == {*VALUES, "trainingType", "resolution"}


@pytest.mark.parametrize("name", ALIASES)
def test_what_the_form_shows_of_a_preset_is_what_the_preset_does(name: str) -> None:
    fields = table()["FLUX_LORA"]["fields"]
    shown = memory_presets()[name]
    assert set(shown) == {
        "batchSize",
        "gradientAccumulation",
        "weightDtype",
        "gradientCheckpointing",
        "cacheVaeOutputs",
    }
    document = {"preset": name, "training": {"data_loader": {"dataset": DATASET}}}
    job = parse_job(document).model_dump(mode="json")["training"]
    for field, value in shown.items():
        assert (
            at(job, fields[field][0]["path"])
            == value
            == preset(name)["training"][fields[field][0]["path"]]
        )
