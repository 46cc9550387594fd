"""Jobs of the SDXL types, from the command line to files that diffusers loads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.numpy import load_file

from tests.integration.fleets import Fleet

# Of diffusers and transformers, while they load.
pytestmark = pytest.mark.filterwarnings("ignore")

BUCKETS = {"target_resolution": 64, "start_dim": 32, "end_dim": 128, "divisible_by": 8}


def sdxl_job(kind: str, model: Path, loader: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {
        "name": "shapes",
        "training": {
            "type": kind,
            "model": str(model),
            "seed": 7,
            "max_train_steps": 6,
            "save_every_n_steps": 3,
            "train_batch_size": 2,
            "cache_vae_outputs": True,
            "data_loader": {"aspect_ratio_buckets": BUCKETS, **loader},
            **training,
        },
    }


def published(fleet: Fleet, job: dict[str, Any]) -> dict[str, Path]:
    """Return the published files by name."""
    ran = fleet.submit(job, "--watch")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    result = ran.documents[-1]
    manifest = json.loads(Path(result["manifest"]).read_text())
    folder = Path(result["manifest"]).parent
    files = {entry["name"]: folder / entry["name"] for entry in manifest["files"]}
    assert next(iter(files.values())) == Path(result["published"])
    assert all(path.is_file() for path in files.values())
    return files


def pipeline_of(model: Path) -> Any:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(str(model), add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image(pipeline: Any, prompt: str = "a red square") -> bytes:
    made: Image.Image = pipeline(prompt, height=64, width=64, num_inference_steps=2).images[0]
    return made.tobytes()


def captioned(images: Path) -> dict[str, Any]:
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(images)}
    return {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": dataset}


def test_two_workers_encode_a_shared_dataset_once(
    fleet: Fleet, tiny_sdxl: Path, images: Path
) -> None:
    for number, path in enumerate(sorted(images.glob("*.txt"))):
        path.write_text(f"what no other job has, {number}", "utf-8")
    loader = captioned(images)
    # One goes to each of the fleet's two GPU workers.
    jobs = [
        sdxl_job(
            "SDXL_LORA",
            tiny_sdxl,
            loader,
            train_text_encoder=False,
            cache_text_encoder_outputs=True,
            max_train_steps=steps,
            save_every_n_steps=steps,
        )
        for steps in (1, 2)
    ]
    ids = [fleet.submit(job).documents[0]["job_id"] for job in jobs]
    for job_id in ids:
        assert fleet.run("watch", job_id, "--json").code == 0, fleet.log()
    stages = [fleet.status(job_id)["stages"]["cache"] for job_id in ids]
    encoded = [re.findall(r"\d+", stage["summary"]) for stage in stages]
    all_images, captions = len(list(images.glob("*.png"))), len(list(images.glob("*.txt")))
    # Another test may have made the images' latents and the blank caption's entry.
    assert sum(int(numbers[0]) for numbers in encoded) in (0, all_images)
    assert sum(int(numbers[1]) for numbers in encoded) in (captions, captions + 1)


def test_a_lora_with_masks_and_validation_images(
    fleet: Fleet, tiny_sdxl: Path, images: Path
) -> None:
    rows = []
    for number, path in enumerate(sorted(images.glob("*.png"))):
        row = {"image": path.name, "text": path.with_suffix(".txt").read_text()}
        if number == 0:
            Image.new("L", Image.open(path).size, 128).save(images / "mask-0.png")
            row["mask"] = "mask-0.png"
        rows.append(json.dumps(row))
    (images / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    dataset = {
        "type": "IMAGE_CAPTION_JSONL_DATASET",
        "jsonl_path": str(images / "rows.jsonl"),
    }
    job = sdxl_job(
        "SDXL_LORA",
        tiny_sdxl,
        {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": dataset},
        use_masks=True,
        optimizer={"optimizer_type": "AdamW", "learning_rate": 0.01},
        validation_prompts=["a red square"],
        num_validation_images_per_prompt=1,
        validate_every_n_steps=3,
    )
    files = published(fleet, job)
    assert list(files)[:2] == ["shapes.safetensors", "shapes-step00000003.safetensors"]
    shown = [name for name in files if name.startswith("validation/")]
    assert shown == [f"validation/validation-00000{step}-1-1.png" for step in (3, 6)]
    assert Image.open(files[shown[0]]).size == (64, 64)
    pipeline = pipeline_of(tiny_sdxl)
    before = image(pipeline)
    pipeline.load_lora_weights(str(files["shapes.safetensors"]))
    assert image(pipeline) != before


def test_an_embedding_is_published_for_both_encoders(
    fleet: Fleet, tiny_sdxl: Path, images: Path
) -> None:
    for caption in images.glob("*.txt"):
        caption.unlink()
    dataset = {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(images)}
    loader = {"type": "TEXTUAL_INVERSION_SD_DATA_LOADER", "caption_preset": "object"}
    job = sdxl_job(
        "SDXL_TEXTUAL_INVERSION",
        tiny_sdxl,
        {**loader, "dataset": dataset},
        placeholder_token="<shape>",
        initializer_token="red",
        num_vectors=2,
    )
    files = published(fleet, job)
    tensors = load_file(files["shapes.safetensors"])
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "clip_l": (2, 32),
        "clip_g": (2, 48),
    }


def test_a_dreambooth_finetune_is_a_whole_pipeline(
    fleet: Fleet, tiny_sdxl: Path, images: Path
) -> None:
    others = images / "others"
    others.mkdir()
    Image.new("RGB", (80, 64), "gray").save(others / "gray.png")
    loader = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "instance_caption": "a photo of sks shape",
        "instance_dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(images)},
        "class_caption": "a photo of a shape",
        "class_dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(others)},
    }
    job = sdxl_job(
        "SDXL_FINETUNE",
        tiny_sdxl,
        loader,
        optimizer={"optimizer_type": "Adafactor"},
        cache_text_encoder_outputs=True,
        use_ema=True,
        save_checkpoint_format="full_diffusers",
        save_dtype="float32",
        max_checkpoints=1,
    )
    files = published(fleet, job)
    folder = files["shapes/model_index.json"].parent
    assert image(pipeline_of(folder)) != image(pipeline_of(tiny_sdxl))


def test_a_wrong_base_model_fails_in_prepare(fleet: Fleet, tiny_model: Path, images: Path) -> None:
    ran = fleet.submit(sdxl_job("SDXL_LORA", tiny_model, captioned(images)), "--watch")
    assert ran.code != 0
    assert "describes a FluxPipeline" in str(ran)
