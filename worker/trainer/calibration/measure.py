"""Trains shapes of runs and measures what each takes of the GPU.

The trainer's own stages on images of noise, in this process; must not know what is made of it.
"""

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from routing.classes import GIB
from tasks.cache.plan import CachePlan
from tasks.calibration import Measurement
from tasks.dataset import Dataset, Sample, dataset_of
from tasks.events import EncoderDigests, Event, PackStored, TrainDone
from tasks.jobs.calibration_shapes import STEPS, Options, described
from tasks.jobs.job import TrainingConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, cache_index_key, dataset_key, image_key
from worker.trainer import cache, train
from worker.trainer.errors import MissingLibraryError
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.memory import CudaMeter, HostMeter, MemoryMeter, release_memory
from worker.trainer.model_cache import ModelCache

logger = logging.getLogger(__name__)


def measure(
    bench: "Bench", wanted: Iterable[tuple[Options, TrainingConfig]]
) -> Iterator[Measurement]:
    """Train each shape, and tell what it took; one that does not fit is told as such.

    Raises:
        RefusedError: The trainer cannot train such shapes at all.
        JobError: The base model or the folder cannot be used.
    """
    for options, config in wanted:
        peak, problem = None, None
        try:
            peak = bench.peak_bytes(config)
        except torch.cuda.OutOfMemoryError:
            problem = "the GPU's memory is full"
        except MissingLibraryError as error:
            problem = f"{error.library} is not installed"
        if problem is not None:
            bench.forget()
        told = problem or f"{(peak or 0) / GIB:.2f} GiB"
        logger.info("%s: %s", described(options), told)
        yield Measurement(options=options, measured_bytes=peak, message=problem)


class Bench:
    """Trains runs one after the other, with what is alike in them loaded and encoded once.

    Args:
        folder: For its store; what it makes there stays.
        device: ``cuda`` is the one GPU that this process is pinned to.
    """

    def __init__(self, folder: Path, device: Literal["cpu", "cuda"]) -> None:
        self._folder = folder.absolute()
        self._device = device
        self._meter: MemoryMeter = CudaMeter() if device == "cuda" else HostMeter()
        self._store = Store((self._folder / "store").as_uri())
        self._kept = ModelCache()
        self._packs: dict[str, str] = {}
        self._runs = 0

    def peak_bytes(self, config: TrainingConfig) -> int:
        """The most memory that a run takes, CUDA's context with it."""
        self._runs += 1
        dataset = self._noise(config)
        index_key = None
        if config.caches_text or config.cache_vae_outputs:
            index_key = self._cached(config, dataset)
        told: list[Event] = []
        request = self._request("train", config, dataset, cache_index_key=index_key)
        train.run(request, told.append, StopSwitch(), self._kept, self._meter)
        # The weights of a run are of no use, and larger than all else.
        self._store.delete(self._store.keys(f"jobs/{request.job_id}"))
        [done] = [event for event in told if isinstance(event, TrainDone)]
        assert done.peak_memory_bytes is not None
        return done.peak_memory_bytes + self._meter.outside_bytes()

    def forget(self) -> None:
        """Drop the models: after a run that failed they may hold anything."""
        self._kept = ModelCache()
        release_memory()

    def _noise(self, config: PipelineConfig) -> Dataset:
        """Images that fill each step, of the largest size."""
        size = max(config.loader.sizes(), key=lambda size: size.pixels)
        samples = []
        for number in range(STEPS * config.train_batch_size):
            shape = (size.height, size.width, 3)
            noise = np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(noise).save(file, "PNG")
            digest = hashlib.sha256(file.getvalue()).hexdigest()
            self._store.put(image_key(digest), file.getvalue())
            samples.append(
                Sample(
                    image=digest,
                    width=size.width,
                    height=size.height,
                    caption=f"image {number}",
                    source=f"image {number}",
                )
            )
        dataset = dataset_of(samples)
        self._store.put(dataset_key(dataset.digest), dataset.model_dump_json().encode())
        return dataset

    def _cached(self, config: PipelineConfig, dataset: Dataset) -> str:
        """Encode what is not encoded yet, as the cache stage does; the index's key."""
        # In this store there are no others, so that reading all their files can be saved.
        encoders = EncoderDigests(
            text="these" if config.caches_text else None,
            vae="these" if config.cache_vae_outputs else None,
        )
        plan = CachePlan(config, dataset, encoders)
        missing = tuple(digest for digest in plan.digests if digest not in self._packs)
        if missing:
            told: list[Event] = []
            wanted = {"encoders": encoders, "cache_entries": missing}
            request = self._request("cache", config, dataset, **wanted)
            cache.run(request, told.append, StopSwitch(), self._kept)
            for event in told:
                if isinstance(event, PackStored):
                    self._packs |= dict.fromkeys(event.entries, event.key)
        key = cache_index_key(f"run-{self._runs}")
        self._store.put(key, plan.index(self._packs).model_dump_json().encode())
        return key

    def _request(
        self, stage: str, config: PipelineConfig, dataset: Dataset, **options: Any
    ) -> TrainerRequest:
        values = {"stage": stage, "training": config, "device": self._device, **options}
        return TrainerRequest(
            job_id=f"run-{self._runs}",
            attempt=1,
            name="run",
            dataset_key=dataset_key(dataset.digest),
            store_url=self._store.url,
            scratch_dir=str(self._folder / "scratch"),
            **values,
        )
