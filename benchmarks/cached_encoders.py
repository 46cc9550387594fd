"""Ratio of a training step's time with cached encoder outputs to that without.

    OMP_NUM_THREADS=1 python -P benchmarks/cached_encoders.py [--report FILE]

Two runs of one SDXL LoRA job on a tiny model alternate in this process: one reads latents and text
outputs from the store, the other encodes images and captions at each step. Goal: well below 1. In a
real model, the VAE and the encoders take a larger share of the step than in a tiny one.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.filled_cache import with_filled_cache
from benchmarks.results import parser_of, report_result
from benchmarks.warm_trainer import request_in
from tasks.events import Event, Progress
from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerRequest
from worker.trainer import train
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache
from worker.trainer.tiny_models import build_tiny_sdxl

ROUNDS = 3
STEPS = 12


def main() -> None:
    """Measure and print the ratio."""
    arguments = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, base = build_tiny_sdxl(folder / "sdxl"), request_in(folder)
        live = request_of(base, model, cached=False)
        cached = request_of(base, model, cached=True)
        kept = ModelCache()
        steps: dict[str, list[float]] = {"live": [], "cached": []}
        for _ in range(ROUNDS):
            steps["live"] += seconds_of_steps(live, kept)
            steps["cached"] += seconds_of_steps(cached, kept)
    medians = {name: statistics.median(values) for name, values in steps.items()}
    line = (
        f"a step: live {medians['live'] * 1e3:.1f} ms, cached {medians['cached'] * 1e3:.1f} ms, "
        f"ratio {medians['cached'] / medians['live']:.3f}"
    )
    command = "OMP_NUM_THREADS=1 python -P benchmarks/cached_encoders.py"
    report_result(arguments.report, "Cached encoders", command, "well below 1", [line])


def request_of(base: TrainerRequest, model: Path, *, cached: bool) -> TrainerRequest:
    """Return a train request on the base request's images, with a filled cache if it uses one."""
    training: dict[str, Any] = {
        "type": "SDXL_LORA",
        "seed": 0,
        "model": str(model),
        "max_train_steps": STEPS,
        "save_every_n_steps": STEPS,
        "train_batch_size": 1,
        "train_text_encoder": False,
        "weight_dtype": "float32",
        "cache_text_encoder_outputs": cached,
        "cache_vae_outputs": cached,
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "resolution": 256,
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "unused"},
        },
    }
    values = {"training": parse_job({"training": training}).training, "cache_index_key": None}
    return with_filled_cache(base.model_copy(update=values))


def seconds_of_steps(request: TrainerRequest, kept: ModelCache) -> list[float]:
    """Return the mean seconds of a step, from the first reported step to the last."""
    reported: list[tuple[int, float]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            reported.append((event.done, time.perf_counter()))

    train.run(request, on_event, StopSwitch(), kept)
    (first, start), (last, end) = reported[0], reported[-1]
    return [(end - start) / (last - first)]


if __name__ == "__main__":
    main()
