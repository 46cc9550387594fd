"""The demo: drawn images and a job, made once in a folder.

    python -P -m worker.local.demo FOLDER [--family sdxl]

The job teaches a miniature model a shape that it does not know, and samples show it before, during
and after: the miniature FLUX where a GPU of class 40gb is, also an emulated one, elsewhere the
miniature SDXL. ``training-worker demo`` runs the job on a fleet of its own. The console of ``up``
offers it as "Try it" (``console/services/jobs/demo.py``), from the folder that
``TRAINING_DEMO_DIR`` names. The folder is complete once it has the job file.
"""

import argparse
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

from tasks.jobs.document import write_document
from tasks.settings.demo_folder import DemoFolder
from worker.miniature.dataset import SAMPLE_CAPTIONS, draw_dataset
from worker.miniature.images import FLUX_FOLDER, SDXL_FOLDER

Family = Literal["flux", "sdxl"]
"""What the demo trains: FLUX needs a GPU of class 40gb, also an emulated one."""

_SIDE = 128
_OPTIONS: dict[str, Any] = {
    "seed": 1,
    "train_batch_size": 4,
    "weight_dtype": "bfloat16",
    "cache_text_encoder_outputs": True,
    "cache_vae_outputs": True,
    "lora_rank_dim": 16,
    "lr_scheduler": "cosine",
    "validation_prompts": [str(caption) for caption in SAMPLE_CAPTIONS],
    "num_validation_images_per_prompt": 1,
    "validate_at_start": True,
    "validate_every_n_steps": 50,
}
_OPTIONS_OF_FAMILY: dict[Family, dict[str, Any]] = {
    "flux": {
        "type": "FLUX_LORA",
        "model": str(FLUX_FOLDER),
        "transformer_learning_rate": 2e-3,
        "max_train_steps": 250,
        "save_every_n_steps": 125,
        "discrete_flow_shift": 1.5,
        "sigmoid_scale": 2.0,
        "t5_tokenizer_max_length": 32,
    },
    "sdxl": {
        "type": "SDXL_LORA",
        "model": str(SDXL_FOLDER),
        "unet_learning_rate": 4e-3,
        "max_train_steps": 150,
        "save_every_n_steps": 75,
        "train_text_encoder": False,
    },
}
_LOADERS = {"flux": "IMAGE_CAPTION_FLUX_DATA_LOADER", "sdxl": "IMAGE_CAPTION_SD_DATA_LOADER"}


def prepare_demo(path: Path, family: Family = "flux") -> dict[str, Any]:
    """Make what is missing in the demo's folder, and return its job.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = DemoFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    draw_dataset(folder.images)
    _pack(folder)
    document = _document(folder.images, family)
    _write(folder.job, write_document(document))
    return document


def _pack(folder: DemoFolder) -> None:
    part = folder.archive.with_name(f"{folder.archive.name}.{os.getpid()}.part")
    with zipfile.ZipFile(part, "w") as archive:
        for path in sorted(folder.images.iterdir()):
            archive.write(path, path.name)
    part.replace(folder.archive)


def _document(images: Path, family: Family) -> dict[str, Any]:
    loader: dict[str, Any] = {
        "type": _LOADERS[family],
        "resolution": _SIDE,
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(images)},
    }
    options = {**_OPTIONS_OF_FAMILY[family], **_OPTIONS}
    return {"name": "demo-lora", "training": {**options, "data_loader": loader}}


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def main() -> None:
    """Prepare the demo from the command line."""
    parser = argparse.ArgumentParser(description="Prepare the demo.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=tuple(_LOADERS), default="flux")
    arguments = parser.parse_args()
    prepare_demo(arguments.folder, arguments.family)


if __name__ == "__main__":
    main()
