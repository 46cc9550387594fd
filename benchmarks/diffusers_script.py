"""Ratio of a training step's processor time to that of diffusers' SDXL LoRA script.

    OMP_NUM_THREADS=1 python -P benchmarks/diffusers_script.py PYTHON SCRIPT [--report FILE]

SCRIPT is ``examples/text_to_image/train_text_to_image_lora_sdxl.py`` of the diffusers project, and
PYTHON an interpreter with its dependencies. Both train one tiny SDXL on the same images: the
UNet's attention, rank 4, batch 1, float32, nothing cached. Goal: 1.0 or less.
"""

import json
import shutil
import tempfile
from pathlib import Path

from benchmarks.results import parser_of, report_result
from benchmarks.sdxl_step import SIDE, STEPS, Ground, line_of

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def main() -> None:
    """Measure and print the ratio."""
    parser = parser_of(__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("script", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ground = Ground(Path(name))
        training = ground.training(
            type="SDXL_LORA",
            train_text_encoder=False,
            unet_lora_target_modules=TARGETS,
            data_loader={
                "type": "IMAGE_CAPTION_SD_DATA_LOADER",
                "resolution": SIDE,
                "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "unused"},
            },
        )
        program = [str(arguments.python), str(arguments.script)]
        options = options_of(ground.model, image_folder(ground.images, Path(name)), Path(name))
        line = line_of(ground.request(training), "the script", [*program, *options])
    command = "OMP_NUM_THREADS=1 python -P benchmarks/diffusers_script.py PYTHON SCRIPT"
    report_result(arguments.report, "Against diffusers' script", command, "1.0 or less", [line])


def image_folder(images: Path, folder: Path) -> Path:
    """Write the images with their captions in the script's format."""
    target = folder / "imagefolder"
    target.mkdir()
    rows = []
    for path in sorted(images.glob("*.png")):
        shutil.copy(path, target / path.name)
        rows.append({"file_name": path.name, "text": path.with_suffix(".txt").read_text("utf-8")})
    (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return target


def options_of(model: Path, images: Path, folder: Path) -> list[str]:
    """Return the script's command line for the same run."""
    values = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": images,
        "caption_column": "text",
        "resolution": SIDE,
        "train_batch_size": 1,
        "max_train_steps": STEPS,
        "checkpointing_steps": 10 * STEPS,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "mixed_precision": "no",
        "rank": 4,
        "seed": 0,
        "dataloader_num_workers": 0,
        "output_dir": folder / "theirs",
        "cache_dir": folder / "datasets",
        "report_to": "tensorboard",
    }
    pairs = ([f"--{name}", str(value)] for name, value in values.items())
    return [*(text for pair in pairs for text in pair), "--center_crop"]


if __name__ == "__main__":
    main()
