"""Ratio of the cache stage's time to that of the bare encoders on the same batches.

    OMP_NUM_THREADS=1 python -P benchmarks/cache_stage.py [IMAGES] [--report FILE]

A tiny FLUX with a VAE of about 2 M parameters runs on the CPU in this process. Besides encoding,
the stage reads, decodes, resizes, checks, packs and stores; the bare encoders get tensors. Goal:
1.15 or less. The benchmark also measures batches of one, and a second job, which encodes nothing.
"""

import random
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from benchmarks.results import parser_of, report_result
from benchmarks.warm_trainer import request_in
from tasks.cache.index import PackIndex
from tasks.cache.plan import CachePlan, encoder_digests
from tasks.data.decoding.images import image_digest
from tasks.dataset import Dataset, Sample, dataset_of
from tasks.events import EncoderDigests, Event, PackStored
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.state.connection import connect
from tasks.store import PACKS, Store, dataset_key, image_key
from worker.local.embedded_broker import EmbeddedBroker
from worker.trainer import cache
from worker.trainer.base_model import take_vae
from worker.trainer.data.inputs import encode_pixels
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.families import take_text
from worker.trainer.model_cache import ModelCache

ROUNDS = 3
SIDE = 256
CPU = torch.device("cpu")


def main() -> None:
    """Measure and print the ratios."""
    parser = parser_of(__doc__)
    parser.add_argument("images", type=int, nargs="?", default=64)
    arguments = parser.parse_args()
    count = arguments.images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = request_of(folder, count)
        store = Store(request.store_url)
        encoders = encoder_digests(request.training)
        dataset = Dataset.model_validate_json(store.get(request.dataset_key))
        plan = CachePlan(request.training, dataset, encoders)
        kept = ModelCache()
        seconds: dict[str, float] = {}
        for _ in range(ROUNDS):
            taken = {
                "bare": bare(request, plan, kept),
                "stage": timed(request, encoders, plan.digests, kept),
                "one by one": one_by_one(request, plan, encoders, kept),
            }
            seconds = {what: min(time, seconds.get(what, time)) for what, time in taken.items()}
        seconds["second job"] = second_job(folder, request, plan, encoders, kept)
    bare_seconds = seconds.pop("bare")
    lines = [f"{count} images, {len(plan.texts)} captions, bare encoders: {bare_seconds:.3f} s"]
    for what, least in seconds.items():
        lines.append(f"{what}: {least:.3f} s, ratio {least / bare_seconds:.3f}")
    command = f"OMP_NUM_THREADS=1 python -P benchmarks/cache_stage.py {count}"
    report_result(arguments.report, "Cache stage", command, "1.15 or less for the stage", lines)


def request_of(folder: Path, count: int) -> TrainerRequest:
    """Return a cache request of noisy JPEGs slightly larger than the training resolution."""
    base = request_in(folder)
    kind: Any = AutoencoderKL
    config = kind.load_config(folder / "model" / "vae")
    wider = {**config, "block_out_channels": (32, 64, 128, 128), "norm_num_groups": 8}
    kind.from_config(wider).save_pretrained(folder / "model" / "vae")
    store, draw = Store(base.store_url), random.Random(0)
    samples = []
    for number in range(count):
        noise = Image.frombytes("RGB", (40, 30), draw.randbytes(3600)).resize((480, 360))
        path = folder / f"{number}.jpg"
        noise.save(path, quality=90)
        digest = image_digest(Image.open(path).convert("RGB"))
        store.put(image_key(digest), path)
        samples.append(
            Sample(
                image=digest, width=480, height=360, caption=f"a photo {number}", source=path.name
            )
        )
    dataset = dataset_of(samples)
    store.put(dataset_key(dataset.digest), dataset.model_dump_json().encode())
    loader = base.training.loader.model_copy(update={"resolution": SIDE})
    training = base.training.model_copy(update={"data_loader": loader})
    changes = {"training": training, "dataset_key": dataset_key(dataset.digest)}
    return base.model_copy(update={**changes, "stage": "cache"})


def bare(request: TrainerRequest, plan: CachePlan, kept: ModelCache) -> float:
    """Return the seconds of the encoders alone."""
    captions = list(plan.texts.values())
    (size,) = {image.size for image in plan.latents.values()}
    batch = cache.batch_size(size)
    pixels = torch.randn(batch, 3, size.height, size.width).clamp(-1, 1)
    text = take_text(request.training, CPU, kept)
    start = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(captions), cache.CAPTIONS):
            text.encode(captions[first : first + cache.CAPTIONS])
    seconds = time.perf_counter() - start
    vae = take_vae(request.training, CPU, kept)
    start = time.perf_counter()
    for _ in range(0, len(plan.latents), batch):
        encode_pixels(vae, pixels)
    return seconds + time.perf_counter() - start


def one_by_one(
    request: TrainerRequest, plan: CachePlan, encoders: EncoderDigests, kept: ModelCache
) -> float:
    """Return the same in batches of one."""
    most = cache.CAPTIONS, cache.MAX_IMAGES
    cache.CAPTIONS, cache.MAX_IMAGES = 1, 1
    try:
        return timed(request, encoders, plan.digests, kept)
    finally:
        cache.CAPTIONS, cache.MAX_IMAGES = most


def timed(
    request: TrainerRequest, encoders: EncoderDigests, digests: list[str], kept: ModelCache
) -> float:
    """Return the seconds of a cache request with an empty store."""
    store = Store(request.store_url)
    store.delete(store.keys(PACKS))
    wanted = {"encoders": encoders, "cache_entries": tuple(digests)}
    start = time.perf_counter()
    cache.run(request.model_copy(update=wanted), lambda _: None, StopSwitch(), kept)
    return time.perf_counter() - start


def second_job(
    folder: Path,
    request: TrainerRequest,
    plan: CachePlan,
    encoders: EncoderDigests,
    kept: ModelCache,
) -> float:
    """Return the seconds to find, over a real broker, that everything is cached."""
    events: list[Event] = []
    wanted = {"encoders": encoders, "cache_entries": tuple(plan.digests)}
    cache.run(request.model_copy(update=wanted), events.append, StopSwitch(), kept)
    with EmbeddedBroker(folder / "broker") as broker:
        index = PackIndex(connect(broker.url), timedelta(hours=1), timedelta(minutes=1))
        for event in events:
            if isinstance(event, PackStored):
                index.add(event.key, event.size, event.entries)
        store = Store(request.store_url)
        start = time.perf_counter()
        dataset = Dataset.model_validate_json(store.get(request.dataset_key))
        found = index.locate(CachePlan(request.training, dataset, encoders).digests)
        seconds = time.perf_counter() - start
    if len(found) != len(plan.digests):
        raise AssertionError("something was not found")
    return seconds


if __name__ == "__main__":
    main()
