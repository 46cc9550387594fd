"""What is published beside a LoRA, and the preview in its header."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tasks.events import Artifact, CheckpointSaved, ValidationImages
from tasks.stages.publish import publish
from tasks.stages.submit import submit
from tasks.state.job_store import JobStore
from tasks.store import Store
from tests.tasks.stages.test_runner import (
    TRAINED,
    ScriptedTrainer,
    empty_dataset,
    leave,
    run_stage,
    worker_with,
)

METADATA = {
    "modelspec.description": "A LoRA of lamps",
    "modelspec.trigger_phrase": "ohwx lamp, photo",
    "ss_v2": "False",
}


def saved(store: Store, folder: Path, step: int, **fields: Any) -> CheckpointSaved:
    path = folder / f"{step}.safetensors"
    save_file({"layer.lora_up.weight": np.full((4, 4), step, np.float32)}, path, METADATA)
    artifact = store.put_artifact(f"jobs/x/{step}/lamp.safetensors", path)
    return CheckpointSaved(step=step, state_key=f"jobs/x/{step}/state", weights=artifact, **fields)


def validated(store: Store, step: int, colour: str) -> ValidationImages:
    made = io.BytesIO()
    Image.new("RGB", (1024, 512), colour).save(made, "PNG")
    name, key = f"validation-{step:06d}-1-1.png", f"jobs/x/validation/{step}.png"
    store.put(key, made.getvalue())
    image = Artifact(name=name, key=key, sha256="0" * 64, size=len(made.getvalue()))
    return ValidationImages(step=step, images=(image,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


def published(
    state: JobStore, store: Store, tmp_path: Path, document: dict[str, Any], **artifacts: Any
) -> dict[str, Path]:
    """Publish a job with these artifacts; return its files by name."""
    document["training"] |= dict.fromkeys(
        ("cache_text_encoder_outputs", "cache_vae_outputs"), False
    )
    job_id = submit(document, state, "result").job_id
    worker = worker_with(state, store, tmp_path, ScriptedTrainer())
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", leave(), job_id, worker)
    run_stage("train", leave(trained=TRAINED, **artifacts), job_id, worker)
    keys = run_stage("publish", publish, job_id, worker)["files"]
    found = {key.rpartition("/")[2]: tmp_path / "store" / key for key in keys}
    manifest = json.loads(store.get(f"outputs/{job_id}/manifest.json"))
    for file in manifest["files"]:
        assert file["size"] == found[file["name"].rpartition("/")[2]].stat().st_size
    return found


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        found: dict[str, str] = file.metadata()
    return found


def colour_of(image: Image.Image) -> list[int]:
    """Return a pixel's colour, without what JPEG changes."""
    return (np.asarray(image.convert("RGB"))[5, 5] // 64).tolist()  # type: ignore[no-any-return]


def test_a_lora_has_its_description_and_preview_beside_it(
    state: JobStore, store: Store, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    checkpoints = tuple(saved(store, tmp_path, step) for step in (5, 10, 20))
    validations = (validated(store, 10, "red"), validated(store, 20, "lime"))
    files = published(
        state,
        store,
        tmp_path,
        job_document,
        checkpoints=checkpoints,
        validations=validations,
    )
    described = json.loads(files["lamp.json"].read_text())
    assert described["description"] == "A LoRA of lamps"
    assert described["activation text"] == "ohwx lamp, photo"
    assert described["date"][:4].isdigit()
    for name, step in (("lamp", 20), ("lamp-step00000010", 10)):
        tensors = load_file(files[f"{name}.safetensors"])
        assert tensors["layer.lora_up.weight"].tolist() == [[step] * 4] * 4
        metadata = metadata_of(files[f"{name}.safetensors"])
        thumbnail = metadata.pop("modelspec.thumbnail")
        assert metadata == METADATA
        kind, _, data = thumbnail.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert len(data) < 64 * 1024
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        assert small.size == (256, 128)
        assert colour_of(small) == colour_of(Image.open(files[f"{name}.png"]))
    # No image was made by then.
    assert "lamp-step00000005.png" not in files
    assert metadata_of(files["lamp-step00000005.safetensors"]) == METADATA


def test_a_damaged_preview_stops_no_publication(
    state: JobStore, store: Store, tmp_path: Path, job_document: dict[str, Any]
) -> None:
    image = Artifact(name="1.png", key="jobs/x/validation/1.png", sha256="0" * 64, size=8)
    store.put(image.key, b"no image")
    job_document["name"] = "manifest"
    checkpoint = saved(store, tmp_path, 20)
    weights = checkpoint.weights.model_copy(update={"name": "manifest.safetensors"})
    checkpoint = checkpoint.model_copy(update={"weights": weights})
    files = published(
        state,
        store,
        tmp_path,
        job_document,
        checkpoints=(checkpoint,),
        validations=(ValidationImages(step=20, images=(image,)),),
    )
    assert metadata_of(files["manifest.safetensors"]) == METADATA
    # It would replace the manifest.
    assert "manifest.json" not in files
