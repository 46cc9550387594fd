import math
from itertools import product
from typing import Any

import pytest

from tasks.jobs.job import parse_job
from tasks.jobs.presets import ALIASES, preset
from tasks.schemas.form import INTERFACES, form_table, memory_presets

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
    """Return a form's ``training`` part, by ``form.json``."""
    training: dict[str, Any] = {}
    for path, value in form_table()[training_type]["set"].items():
        put(training, path, value)
    for name, value in values.items():
        for target in form_table()[training_type]["fields"].get(name, ()):
            factor = target.get("factor")
            put(training, target["path"], value if factor is None else math.ceil(value * factor))
    put(training, "data_loader.dataset", DATASET)
    return training


@pytest.mark.parametrize(
    ("training_type", "resolution"), list(product(form_table(), (512, 768, 1024))), ids=str
)
def test_a_form_sets_its_options(training_type: str, resolution: int) -> None:
    values = {**VALUES, "resolution": resolution}
    training = filled_in(training_type, values)
    if training_type == "SDXL_TEXTUAL_INVERSION":
        training |= {"placeholder_token": "<cat>", "initializer_token": "cat"}
        training["data_loader"]["caption_preset"] = "object"
    job = parse_job({"training": training}).model_dump(mode="json")["training"]
    for name, targets in form_table()[training_type]["fields"].items():
        if name in values:
            assert at(job, targets[0]["path"]) == values[name], name
    assert job["type"] == training_type
    assert job["save_every_n_steps"] == 251
    assert job["data_loader"]["aspect_ratio_buckets"]["target_resolution"] == resolution


def test_flux_has_an_option_for_every_field() -> None:
    named = {field.name for fields in INTERFACES.values() for field in fields}
    assert named - {"trainingType"} <= set(form_table()["FLUX_LORA"]["fields"])
    assert named == {*VALUES, "trainingType", "resolution"}


@pytest.mark.parametrize("name", ALIASES)
def test_memory_presets_match_the_presets(name: str) -> None:
    fields = form_table()["FLUX_LORA"]["fields"]
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
