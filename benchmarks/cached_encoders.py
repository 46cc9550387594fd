"""A training step's time with cached encoder outputs over that without, as a ratio.

    OMP_NUM_THREADS=1 python -P benchmarks/cached_encoders.py [--report FILE]

Two runs of one SDXL LoRA job on a tiny model, in this process, in turns: one reads latents and text
outputs from the store, the other encodes images and captions at each step. Goal: well below 1; of
a real model's step, the VAE's and the encoders' share is larger than of a tiny one's.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.filled_cache import with_filled_cache
from benchmarks.results import parser_of, tell
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
    """Print the ratio."""
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
    tell(arguments.report, "Cached encoders", command, "well below 1", [line])


def request_of(base: TrainerRequest, model: Path, *, cached: bool) -> TrainerRequest:
    """A train request on the base request's images, its cache filled where it uses one."""
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
    """The mean seconds of a step, from the first step told to the last."""
    told: list[tuple[int, float]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            told.append((event.done, time.perf_counter()))

    train.run(request, on_event, StopSwitch(), kept)
    (first, start), (last, end) = told[0], told[-1]
    return [(end - start) / (last - first)]


if __name__ == "__main__":
    main()
