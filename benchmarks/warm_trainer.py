"""Ratio of a warm trainer's seconds from a request to its first step to a cold trainer's.

    OMP_NUM_THREADS=1 python -P benchmarks/warm_trainer.py [--report FILE]

The same job of a tiny FLUX with filled caches is run several times: with a new trainer process each
time, and with a warm one. The first progress event ends the measurement. With a tiny model, a warm
trainer saves the import of the libraries; with a real one, also loading 24 GB. Goal: 0.2 or less.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.filled_cache import with_filled_cache
from benchmarks.results import parser_of, report_result
from tasks.data.decoding.images import image_digest, open_image
from tasks.dataset import Sample, dataset_of
from tasks.events import Event, Progress
from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, dataset_key, image_key
from worker.local.demo_images import draw_demo_images
from worker.supervision.trainer_pool import TrainerPool, trainer_environment
from worker.supervision.trainer_process import Limits
from worker.trainer.tiny_models import build_tiny_flux

RUNS = 5


def main() -> None:
    """Measure and print the ratio."""
    arguments = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        request = request_in(Path(name))
        cold = statistics.median(seconds_to_first_step(request, kept=1) for _ in range(RUNS))
        supervision = supervision_of(kept=RUNS + 1)
        seconds_to_first_step(request, supervision=supervision)
        warm = statistics.median(
            seconds_to_first_step(request, supervision=supervision) for _ in range(RUNS)
        )
        supervision.close()
    line = f"to the first step: cold {cold:.2f} s, warm {warm:.2f} s, ratio {warm / cold:.3f}"
    command = "OMP_NUM_THREADS=1 python -P benchmarks/warm_trainer.py"
    report_result(arguments.report, "Warm trainer", command, "0.2 or less", [line])


def supervision_of(kept: int) -> TrainerPool:
    """Return a trainer pool with the environment of a worker without a GPU."""
    env = trainer_environment(dict(os.environ), None)
    return TrainerPool(env, restarts=0, limits=Limits(grace_s=20), max_requests=kept)


def seconds_to_first_step(
    request: TrainerRequest, *, kept: int = 1, supervision: TrainerPool | None = None
) -> float:
    """Return the seconds from the request to the first reported step."""
    first: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.unit == "steps" and not first:
            first.append(time.perf_counter())

    start = time.perf_counter()
    (supervision or supervision_of(kept)).run(
        request, on_event=on_event, stop_requested=lambda: False
    )
    return first[0] - start


def request_in(folder: Path) -> TrainerRequest:
    """Return a train request whose cache entries are all stored."""
    store, model = Store(f"file://{folder}/store"), build_tiny_flux(folder / "model")
    draw_demo_images(folder / "images")
    samples = []
    for path in sorted((folder / "images").glob("*.png")):
        image = open_image(path.read_bytes())
        digest = image_digest(image)
        store.put(image_key(digest), path)
        samples.append(
            Sample(
                image=digest,
                width=image.width,
                height=image.height,
                caption=path.with_suffix(".txt").read_text("utf-8"),
                source=path.name,
            )
        )
    dataset = dataset_of(samples)
    store.put(dataset_key(dataset.digest), dataset.model_dump_json().encode())
    source = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "unused"}
    training = {
        "type": "FLUX_LORA",
        "seed": 0,
        "model": str(model),
        "max_train_steps": 2,
        "save_every_n_steps": 2,
        "weight_dtype": "bfloat16",
        "t5_tokenizer_max_length": 128,
        "cache_text_encoder_outputs": True,
        "cache_vae_outputs": True,
        "data_loader": {
            "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
            "resolution": 128,
            "dataset": source,
        },
    }
    request = TrainerRequest(
        stage="cache",
        job_id="benchmark",
        start_id="1",
        name="lora",
        training=parse_job({"training": training}).training,
        dataset_key=dataset_key(dataset.digest),
        store_url=store.url,
        scratch_dir=str(folder / "scratch"),
        device="cpu",
    )
    return with_filled_cache(request)


if __name__ == "__main__":
    main()
