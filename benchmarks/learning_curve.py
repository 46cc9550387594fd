"""What a LoRA of the miniature FLUX has learned, step by step: our recipe and diffusers' script.

    python -P benchmarks/learning_curve.py PYTHON EXAMPLES [--report FILE]

EXAMPLES is the folder of that name of the diffusers project, and PYTHON an interpreter with the
dependencies of its scripts. Ours is the demo's job. The script trains on the same images for as
many steps, with the same rank, batch and learning rates, and otherwise with its defaults; three
seeds each. Every 50 steps: how many of 20 images of the concept are right, how many of 20 of
held-out captions, and the loss on images of the concept in colors that the dataset does not have,
at five noise levels. Goal: ours is as good or better.
"""

import os
import random
import subprocess
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.diffusers_script import image_folder, options_of
from benchmarks.filled_cache import with_filled_cache
from benchmarks.memory_trace.shapes import SCRIPTS
from benchmarks.miniature import SIDE, Miniature
from benchmarks.results import parser_of, report_result
from benchmarks.warm_trainer import request_in
from tasks.events import CheckpointSaved, Event
from tasks.jobs.job import parse_job
from tasks.store import Store
from worker.local.demo import prepare_demo
from worker.miniature.dataset import UNSEEN_COLORS
from worker.miniature.images import (
    CONCEPT_SHAPE,
    FLUX_FOLDER,
    Caption,
    all_captions,
    draw,
    held_out_captions,
)
from worker.trainer import train
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache

_SEEDS, _EVERY, _COUNT = (1, 2, 3), 50, 20
_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
Scores = tuple[int, int, float]
"""Right images of the concept, right images of held-out captions, and the held-out loss."""


def main() -> None:
    """Measure and print both curves."""
    parser = parser_of(__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("examples", type=Path)
    arguments = parser.parse_args()
    miniature = Miniature(FLUX_FOLDER)
    base = scores_of(miniature, None)
    curves: dict[str, list[dict[int, Scores]]] = {"ours": [], "the script": []}
    with tempfile.TemporaryDirectory() as name:
        for seed in _SEEDS:
            folder = Path(name) / str(seed)
            training = training_of(folder / "demo", seed)
            program = [str(arguments.python), str(arguments.examples / SCRIPTS["FLUX_LORA"])]
            for side, files in (
                ("ours", our_loras(folder, training)),
                ("the script", their_loras(folder, training, program)),
            ):
                curve = {step: scores_of(miniature, path) for step, path in files.items()}
                curves[side].append(curve)
                print(side, seed, curve, flush=True)
    command = "python -P benchmarks/learning_curve.py PYTHON EXAMPLES"
    lines = [f"base: {text_of([base])}"]
    lines += [
        f"{side}, step {step}: {text_of([curve[step] for curve in found])}"
        for step in curves["ours"][0]
        for side, found in curves.items()
    ]
    report_result(arguments.report, "Learning curve", command, "ours is as good or better", lines)


def training_of(folder: Path, seed: int) -> dict[str, Any]:
    """Return the demo's ``training`` without samples."""
    training: dict[str, Any] = prepare_demo(folder)["training"]
    samples = {name for name in training if "valid" in name}
    kept = {name: value for name, value in training.items() if name not in samples}
    return {**kept, "seed": seed, "save_every_n_steps": _EVERY}


def our_loras(folder: Path, training: dict[str, Any]) -> dict[int, Path]:
    """Train by our recipe; return the file of each checkpoint by its step."""
    values = {"training": parse_job({"training": training}).training}
    request = with_filled_cache(request_in(folder / "ours").model_copy(update=values))
    saved: list[CheckpointSaved] = []

    def on_event(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            saved.append(event)

    train.run(request, on_event, StopSwitch(), ModelCache())
    store = Store(request.store_url)
    found = {event.step: store.local_path(event.weights.key) for event in saved}
    return {step: path for step, path in found.items() if path is not None}


def their_loras(folder: Path, training: dict[str, Any], program: list[str]) -> dict[int, Path]:
    """Train by the script; return the file of each checkpoint by its step."""
    output, steps = folder / "theirs", training["max_train_steps"]
    (folder / "script").mkdir()
    images = image_folder(folder / "ours" / "images", folder / "script")
    options = options_of(
        FLUX_FOLDER,
        output,
        steps,
        {
            "dataset_name": images,
            "cache_dir": folder / "data",
            "caption_column": "text",
            # It must have one, and does not use it.
            "instance_prompt": "a zorp",
            "resolution": training["data_loader"]["resolution"],
            "train_batch_size": training["train_batch_size"],
            "max_train_steps": steps,
            "checkpointing_steps": _EVERY,
            "learning_rate": training["transformer_learning_rate"],
            "lr_scheduler": training["lr_scheduler"],
            "lr_warmup_steps": 10,
            "rank": training["lora_rank_dim"],
            "lora_alpha": training["lora_rank_dim"],
            "seed": training["seed"],
            "max_sequence_length": training["t5_tokenizer_max_length"],
            "mixed_precision": "bf16",
        },
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*program, *options], env=env, check=True, stdout=subprocess.DEVNULL)
    name = "pytorch_lora_weights.safetensors"
    return {step: output / f"checkpoint-{step}" / name for step in range(_EVERY, steps + 1, _EVERY)}


def scores_of(miniature: Miniature, lora: Path | None) -> Scores:
    """Return what the model draws right with a LoRA, and its loss."""
    miniature.use(lora)
    draws = random.Random(1)
    unseen = [it for it in all_captions((CONCEPT_SHAPE,)) if it.color in UNSEEN_COLORS]
    unseen = draws.sample(unseen, _COUNT)
    images = [draw(it, (SIDE, SIDE), draws) for it in unseen]
    words = [str(it) for it in unseen]
    loss = fmean(miniature.flux_loss(images, words, level) for level in _LEVELS)
    right = [_right(miniature, captions) for captions in (unseen, held_out_captions()[:_COUNT])]
    return right[0], right[1], loss


def _right(miniature: Miniature, captions: list[Caption]) -> int:
    return sum(miniature.draws_right(captions, range(len(captions))))


def text_of(scores: list[Scores]) -> str:
    """Return the scores of all seeds as text."""
    concept, known, loss = zip(*scores, strict=True)
    counts = (f"{' '.join(map(str, found))} of {_COUNT}" for found in (concept, known))
    return "concept {}, held-out captions {}, loss {:.4f}".format(*counts, fmean(loss))


if __name__ == "__main__":
    main()
