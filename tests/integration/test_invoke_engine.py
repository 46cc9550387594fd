"""Jobs of the engine ``invoke-training``, with the real library if this machine has it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from benchmarks.miniature import Miniature
from tasks.events import Progress
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.integration.test_published_file import generated_image as flux_image
from tests.integration.test_sdxl_jobs import captioned, image, pipeline_of, sdxl_job
from tests.waiting import wait_until
from worker.local.demo import prepare_demo
from worker.miniature.dataset import SAMPLE_CAPTIONS, draw_dataset
from worker.miniature.images import FLUX_FOLDER

PYTHON = os.environ.get("TRAINING_INVOKE_PYTHON")
MODULE = "worker.trainer.invoke"

with_library = pytest.mark.skipif(
    PYTHON is None, reason="no interpreter with invoke-training in TRAINING_INVOKE_PYTHON"
)
# Of diffusers and transformers, while they load.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def library_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("invoke")
    with Fleet(home, "80gb", TRAINING_INVOKE_PYTHON=str(PYTHON)) as running:
        yield running


@pytest.fixture(scope="module")
def flux_job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    images = tmp_path_factory.mktemp("data") / "images"
    draw_dataset(images)
    return {"engine": "invoke-training", **short_job(tiny_model, images)}


def with_training(job: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {**job, "training": {**job["training"], **training}}


def done(fleet: Fleet, job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a job's result and its manifest."""
    ran = fleet.submit(job, "--watch")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    result = ran.documents[-1]
    return result, json.loads(Path(result["manifest"]).read_text())


def trainers(fleet: Fleet) -> list[psutil.Process]:
    """Return the library's training processes, except processes that only probe it."""
    found = []
    for child in psutil.Process(fleet.process.pid).children(recursive=True):
        try:
            if MODULE in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def begun(fleet: Fleet, job: dict[str, Any]) -> str:
    """Return a job that has a checkpoint and still trains."""
    job_id: str = fleet.submit(job).documents[0]["job_id"]
    wait_until(
        lambda: bool(fleet.record(job_id).artifacts.checkpoints),
        timeout_s=PATIENCE_S,
        description="the job has a checkpoint",
        detail=fleet.log,
    )
    return job_id


def test_a_job_without_a_worker_of_its_engine_reports_why_it_waits(
    fleet: Fleet, job: dict[str, Any]
) -> None:
    job["engine"] = "invoke-training"
    refused = fleet.submit(job, "--require-worker")
    assert refused.code == 7
    assert "no live worker serves gpu.40gb.invoke-training" in refused.out
    assert "TRAINING_INVOKE_PYTHON" in refused.out
    submitted = fleet.submit(job).documents[0]
    assert "TRAINING_INVOKE_PYTHON" in submitted["waiting_reason"]
    wait_until(
        lambda: fleet.record(submitted["job_id"]).pending_queue == "gpu.40gb.invoke-training",
        timeout_s=PATIENCE_S,
        description="the job waits for the engine",
        detail=fleet.log,
    )
    assert fleet.run("cancel", submitted["job_id"]).code == 0


@with_library
def test_a_flux_lora_passes_all_stages(
    library_fleet: Fleet, flux_job: dict[str, Any], tiny_model: Path
) -> None:
    job = with_training(
        flux_job,
        transformer_learning_rate=0.01,
        validation_prompts=["a red square"],
        num_validation_images_per_prompt=2,
        validate_every_n_steps=6,
    )
    result, manifest = done(library_fleet, job)
    engine = manifest["engine"]
    assert engine["name"] == "invoke-training"
    assert "lora_file" in engine["patches"]
    assert engine["versions"]["invoke-training"]
    assert engine["versions"]["transformers"].startswith("4.")
    names = [entry["name"] for entry in manifest["files"]]
    assert names[0] == "shapes.safetensors"
    assert [n for n in names if n.startswith("validation/")] == [
        f"validation/validation-{step:06d}-1-{number}.jpg" for step in (6, 12) for number in (1, 2)
    ]
    stages = library_fleet.status(result["job_id"])["stages"]
    assert stages["train"]["queue"] == "gpu.40gb.invoke-training"
    changed = flux_image(tiny_model, Path(result["published"]))
    assert np.abs(changed - flux_image(tiny_model, None)).max() > 1 / 255


@with_library
def test_a_lora_draws_the_concept_of_its_images(library_fleet: Fleet, tmp_path: Path) -> None:
    job = prepare_demo(tmp_path)
    training = {name: it for name, it in job["training"].items() if "valid" not in name}
    result, _ = done(library_fleet, {**job, "training": training, "engine": "invoke-training"})
    miniature = Miniature(FLUX_FOLDER)
    assert sum(miniature.draws_right([SAMPLE_CAPTIONS[0]] * 10, range(10))) <= 1
    miniature.use(Path(result["published"]))
    assert sum(miniature.draws_right([SAMPLE_CAPTIONS[0]] * 10, range(10))) >= 8


@with_library
def test_sdxl_results_load_in_other_libraries(
    library_fleet: Fleet, tiny_sdxl: Path, images: Path
) -> None:
    fast = {"optimizer": {"optimizer_type": "AdamW", "learning_rate": 0.01}}
    loader = captioned(images)
    lora = sdxl_job("SDXL_LORA", tiny_sdxl, loader, weight_dtype="float32", **fast)
    word = sdxl_job(
        "SDXL_TEXTUAL_INVERSION",
        tiny_sdxl,
        {
            "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
            "caption_preset": "object",
            "dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(images)},
        },
        placeholder_token="<shape>",
        initializer_token="red",
        num_vectors=2,
    )
    whole = sdxl_job(
        "SDXL_FINETUNE",
        tiny_sdxl,
        loader,
        cache_text_encoder_outputs=True,
        save_checkpoint_format="full_diffusers",
        save_dtype="float32",
        **fast,
    )
    for caption in images.glob("*.txt"):
        caption.write_text("a red square", "utf-8")
    results = [
        Path(done(library_fleet, {"engine": "invoke-training", **job})[0]["published"])
        for job in (lora, word, whole)
    ]
    pipeline = pipeline_of(tiny_sdxl)
    before = image(pipeline)
    pipeline.load_lora_weights(str(results[0]))
    assert image(pipeline) != before
    assert {name: tensor.shape for name, tensor in load_file(results[1]).items()} == {
        "clip_l": (2, 32),
        "clip_g": (2, 48),
    }
    folder = next(
        folder for folder in results[2].parents if (folder / "model_index.json").is_file()
    )
    assert image(pipeline_of(folder)) != before


@with_library
def test_kills_and_stops_change_no_result(library_fleet: Fleet, flux_job: dict[str, Any]) -> None:
    job = with_training(flux_job, max_train_steps=400, save_every_n_steps=20)
    expected, _ = done(library_fleet, job)
    job_id = begun(library_fleet, job)
    [trainer] = trainers(library_fleet)
    trainer.kill()
    wait_until(
        lambda: any(process.pid != trainer.pid for process in trainers(library_fleet)),
        timeout_s=PATIENCE_S,
        description="the trainer is started again",
        detail=library_fleet.log,
    )
    # As a spot machine's notice does, whenever it comes: the job goes back, and on.
    assert library_fleet.run("pause", job_id).code == 0
    wait_until(
        lambda: library_fleet.status(job_id)["status"] == "paused",
        timeout_s=PATIENCE_S,
        description="the job is paused",
        detail=library_fleet.log,
    )
    assert not trainers(library_fleet)
    assert library_fleet.run("resume", job_id).code == 0
    ran = library_fleet.run("watch", job_id, "--json")
    assert ran.code == 0, f"{ran}\n{library_fleet.log()}"
    assert ran.documents[-1]["sha256"] == expected["sha256"]


@with_library
def test_cancel_with_save_publishes_the_last_checkpoint(
    library_fleet: Fleet, flux_job: dict[str, Any]
) -> None:
    job = with_training(flux_job, max_train_steps=100_000, save_every_n_steps=50_000)
    job_id = library_fleet.submit(job).documents[0]["job_id"]
    wait_until(
        lambda: any(
            isinstance(event, Progress) and event.stage == "train"
            for event in library_fleet.events(job_id)
        ),
        timeout_s=PATIENCE_S,
        description="the job trains",
        detail=library_fleet.log,
    )
    assert library_fleet.run("cancel", job_id, "--save").code == 0
    ran = library_fleet.run("watch", job_id, "--json")
    assert ran.code == 0, f"{ran}\n{library_fleet.log()}"
    manifest = json.loads(Path(ran.documents[-1]["manifest"]).read_text())
    assert 0 < manifest["steps"] < 100_000
