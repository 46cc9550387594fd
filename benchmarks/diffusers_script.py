"""A training step's time over that of diffusers' SDXL LoRA example script, as a ratio.

    OMP_NUM_THREADS=1 python -P benchmarks/diffusers_script.py PYTHON SCRIPT [--report FILE]

SCRIPT is ``examples/text_to_image/train_text_to_image_lora_sdxl.py`` of the diffusers project, and
PYTHON an interpreter that has what it needs. Both train one tiny SDXL on the same pictures: the
UNet's attention, rank 4, batch 1, float32, nothing cached. Each side runs as a whole process with
few steps and with many, in turns; the difference is the steps' time. Goal: 1.0 or less.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import parser_of, tell
from benchmarks.warm_trainer import request_in, supervision_of
from tasks.jobs.job import parse_job
from tasks.requests import TrainerRequest
from worker.trainer.tiny_models import build_tiny_sdxl

ROUNDS = 3
FEW, MANY = 5, 45
SIDE = 128
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def main() -> None:
    """Print the ratio."""
    parser = parser_of(__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("script", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, base = build_tiny_sdxl(folder / "sdxl"), request_in(folder)
        pictures = image_folder(folder)
        script = [str(arguments.python), str(arguments.script)]
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            ours = [seconds_of_ours(base, model, steps) for steps in (FEW, MANY)]
            theirs = [
                seconds_of_theirs([*script, *options_of(model, pictures, folder, steps)])
                for steps in (FEW, MANY)
            ]
            seconds["ours"].append((ours[1] - ours[0]) / (MANY - FEW))
            seconds["theirs"].append((theirs[1] - theirs[0]) / (MANY - FEW))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    line = (
        f"a step: ours {medians['ours'] * 1e3:.1f} ms, the script {medians['theirs'] * 1e3:.1f} "
        f"ms, ratio {medians['ours'] / medians['theirs']:.3f}"
    )
    command = "OMP_NUM_THREADS=1 python -P benchmarks/diffusers_script.py PYTHON SCRIPT"
    tell(arguments.report, "Against diffusers' script", command, "1.0 or less", [line])


def image_folder(folder: Path) -> Path:
    """The pictures with their captions as the script reads them."""
    target = folder / "imagefolder"
    target.mkdir()
    rows = []
    for path in sorted((folder / "pictures").glob("*.png")):
        shutil.copy(path, target / path.name)
        rows.append({"file_name": path.name, "text": path.with_suffix(".txt").read_text("utf-8")})
    (target / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return target


def seconds_of_ours(base: TrainerRequest, model: Path, steps: int) -> float:
    """A whole run of ours."""
    training: dict[str, Any] = {
        "type": "SDXL_LORA",
        "seed": 0,
        "model": str(model),
        "max_train_steps": steps,
        "save_every_n_steps": 1000,
        "train_batch_size": 1,
        "train_text_encoder": False,
        "unet_lora_target_modules": TARGETS,
        "min_snr_gamma": None,
        "max_grad_norm": 1.0,
        "weight_dtype": "float32",
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "resolution": SIDE,
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "unused"},
        },
    }
    values = {"training": parse_job({"training": training}).training, "cache_index_key": None}
    supervision = supervision_of(kept=1)
    start = time.perf_counter()
    supervision.run(
        base.model_copy(update=values), on_event=lambda _: None, stop_requested=lambda: False
    )
    return time.perf_counter() - start


def options_of(model: Path, pictures: Path, folder: Path, steps: int) -> list[str]:
    """The script's command line for the same run."""
    values = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": pictures,
        "caption_column": "text",
        "resolution": SIDE,
        "train_batch_size": 1,
        "max_train_steps": steps,
        "checkpointing_steps": 1000,
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


def seconds_of_theirs(command: list[str]) -> float:
    """A whole run of the script."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"the script failed:\n{ran.stderr[-3000:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
