"""Ratio of a warm trainer's seconds from a request to its first step to a cold trainer's.

    OMP_NUM_THREADS=1 python -P benchmarks/warm_trainer.py [--report FILE]

The same job with filled caches is run several times, in turns: by a new trainer process whose base
model is not in memory, by one whose base model was read ahead into the page cache, and by a warm
one. The transformer is three blocks of two thirds of FLUX's width. The first progress event ends
the measurement. Goal: 0.2 or less, warm against cold.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from benchmarks.filled_cache import with_filled_cache
from benchmarks.real_models import new_weights
from benchmarks.results import parser_of, report_result
from tasks.data.decoding.images import image_digest, open_image
from tasks.dataset import Sample, dataset_of
from tasks.events import Event, Progress
from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, dataset_key, image_key
from worker.miniature.dataset import draw_dataset
from worker.supervision.trainer_pool import TrainerPool, trainer_environment
from worker.supervision.trainer_process import Limits
from worker.trainer.tiny_models import build_tiny_flux

RUNS = 3


def main() -> None:
    """Measure and print the ratio."""
    arguments = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        # Few tokens: the step itself takes little of the time.
        request = request_in(Path(name), resolution=32, tokens=8)
        [file] = wide_transformer(Path(name) / "model" / "transformer").glob("*.safetensors")
        supervision = supervision_of(kept=RUNS + 1)
        seconds_to_first_step(request, supervision=supervision)
        rows = []
        for _ in range(RUNS):
            advise(file, os.POSIX_FADV_DONTNEED)
            cold = seconds_to_first_step(request)
            advise(file, os.POSIX_FADV_DONTNEED)
            advise(file, os.POSIX_FADV_WILLNEED)
            file.read_bytes()  # waits for the kernel
            read_ahead = seconds_to_first_step(request)
            rows.append((cold, read_ahead, seconds_to_first_step(request, supervision=supervision)))
        supervision.close()
        size = file.stat().st_size / 1e9
    cold, read_ahead, warm = (statistics.median(row) for row in zip(*rows, strict=True))
    lines = [
        f"to the first step, with a transformer of {size:.1f} GB: cold {cold:.2f} s, "
        f"read ahead {read_ahead:.2f} s, warm {warm:.2f} s",
        f"ratio to cold: read ahead {read_ahead / cold:.3f}, warm {warm / cold:.3f}",
    ]
    command = "OMP_NUM_THREADS=1 python -P benchmarks/warm_trainer.py"
    report_result(arguments.report, "Warm trainer", command, "warm 0.2 or less", lines)


def advise(file: Path, advice: int) -> None:
    """Let the kernel read a file into its page cache, or drop it."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        # In pieces, as the worker does: the kernel reads no more of a long range.
        for offset in range(0, file.stat().st_size, 128 * 1024):
            os.posix_fadvise(opened.fileno(), offset, 128 * 1024, advice)


def wide_transformer(folder: Path) -> Path:
    """Replace a tiny FLUX's transformer by a wide one, in its folder."""
    tiny = FluxTransformer2DModel.load_config(folder)
    width = {"attention_head_dim": 128, "num_attention_heads": 16, "axes_dims_rope": (16, 56, 56)}
    with new_weights("cpu", torch.bfloat16):
        wide = FluxTransformer2DModel.from_config(
            {**tiny, **width, "num_layers": 1, "num_single_layers": 2}
        )
    wide.save_pretrained(folder)
    return folder


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


def request_in(folder: Path, *, resolution: int = 128, tokens: int = 128) -> TrainerRequest:
    """Return a train request whose cache entries are all stored.

    Args:
        folder: A new folder for the dataset and the tiny FLUX.
        resolution: The size of the images.
        tokens: Tokens of a caption that T5 reads.
    """
    store, model = Store(f"file://{folder}/store"), build_tiny_flux(folder / "model")
    draw_dataset(folder / "images")
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
        "t5_tokenizer_max_length": tokens,
        "cache_text_encoder_outputs": True,
        "cache_vae_outputs": True,
        "data_loader": {
            "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
            "resolution": resolution,
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
