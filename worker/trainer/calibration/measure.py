"""Trains shapes of runs and measures the GPU memory of each.

It runs the trainer's own stages on images of noise, in this process.
"""

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from routing.classes import GIB
from tasks.cache.plan import CachePlan
from tasks.calibration import Measurement
from tasks.dataset import Dataset, Sample, dataset_of
from tasks.errors import ErrorCode
from tasks.events import EncoderDigests, Event, PackStored, TrainDone
from tasks.jobs.calibration_shapes import STEPS, Options, described
from tasks.jobs.job import TrainingConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.cuda_errors import GPU_MESSAGES
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, cache_index_key, dataset_key, image_key
from worker.trainer import cache, train
from worker.trainer.compute.memory import (
    CudaMeter,
    HostMeter,
    MemoryMeter,
    find_gpu_error,
    release_memory,
)
from worker.trainer.errors import MissingLibraryError
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache

logger = logging.getLogger(__name__)


def measure(
    bench: "Bench", wanted: Iterable[tuple[Options, TrainingConfig]]
) -> Iterator[Measurement]:
    """Train each shape and measure its memory; one that does not fit yields a message instead.

    After an error that costs this process the GPU, so do all others.

    Raises:
        RefusedError: The trainer cannot train any of the shapes.
        JobError: The base model or the folder cannot be used.
    """
    has_gpu = True
    for options, config in wanted:
        peak, problem = None, None
        try:
            if has_gpu:
                peak = bench.peak_bytes(config)
            else:
                problem = "not measured, since the GPU has failed"
        except RuntimeError as error:
            found = find_gpu_error(error)
            if found is None:
                raise
            code, text = found
            has_gpu = code == ErrorCode.OUT_OF_MEMORY
            problem = GPU_MESSAGES[code] if has_gpu else f"{GPU_MESSAGES[code]}: {text}"
        except MissingLibraryError as error:
            problem = f"{error.library} is not installed"
        if problem is not None and has_gpu:
            bench.reset()
        result = problem or f"{(peak or 0) / GIB:.2f} GiB"
        logger.info("%s: %s", described(options), result)
        yield Measurement(options=options, measured_bytes=peak, message=problem)


class Bench:
    """Trains runs one after the other; models and cache entries are shared by all.

    Args:
        folder: The folder of its store, which stays.
        device: ``cuda`` is the one GPU that this process is pinned to.
    """

    def __init__(self, folder: Path, device: Literal["cpu", "cuda"]) -> None:
        self._folder = folder.absolute()
        self._device = device
        self._meter: MemoryMeter = CudaMeter() if device == "cuda" else HostMeter()
        self._store = Store((self._folder / "store").as_uri())
        self._cache = ModelCache()
        self._packs: dict[str, str] = {}
        self._runs = 0

    def peak_bytes(self, config: TrainingConfig) -> int:
        """Train a run and return its peak memory, CUDA's context included."""
        request = self.request(config)
        events = self.train(request)
        # A run's weights are of no use, and larger than everything else.
        self._store.delete(self._store.keys(f"jobs/{request.job_id}"))
        return self.peak_of(events)

    def peak_of(self, events: Iterable[Event]) -> int:
        """Return the peak memory of a run, CUDA's context included, from its events."""
        [done] = [event for event in events if isinstance(event, TrainDone)]
        assert done.peak_memory_bytes is not None
        return done.peak_memory_bytes + self._meter.outside_bytes()

    def request(self, config: TrainingConfig, **fields: Any) -> TrainerRequest:
        """Return a request to train on noise, whose dataset and cache entries are stored.

        Args:
            config: What to train.
            fields: More fields of the request.
        """
        self._runs += 1
        dataset = self._noise(config)
        index_key = None
        if config.caches_text or config.cache_vae_outputs:
            index_key = self._cached(config, dataset)
        return self._request("train", config, dataset, cache_index_key=index_key, **fields)

    def train(
        self, request: TrainerRequest, emit: Callable[[Event], None] = lambda _event: None
    ) -> list[Event]:
        """Train and return the events of the run, which ``emit`` gets as they come."""
        events: list[Event] = []

        def both(event: Event) -> None:
            events.append(event)
            emit(event)

        train.run(request, both, StopSwitch(), self._cache, self._meter)
        return events

    def reset(self) -> None:
        """Drop the models: a failed run leaves them in an unknown state."""
        self._cache = ModelCache()
        release_memory()

    def _noise(self, config: PipelineConfig) -> Dataset:
        """Store a dataset of images that fill each step, of the largest size."""
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
        """Encode what is not encoded yet, as the cache stage does; return the index's key."""
        # The files of a model do not change in this process, and so need not be digested.
        encoders = EncoderDigests(
            text=config.model if config.caches_text else None,
            vae=config.model if config.cache_vae_outputs else None,
        )
        plan = CachePlan(config, dataset, encoders)
        missing = tuple(digest for digest in plan.digests if digest not in self._packs)
        if missing:
            events: list[Event] = []
            fields = {"encoders": encoders, "cache_entries": missing}
            request = self._request("cache", config, dataset, **fields)
            cache.run(request, events.append, StopSwitch(), self._cache)
            for event in events:
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
            start_id="1",
            name="run",
            dataset_key=dataset_key(dataset.digest),
            store_url=self._store.url,
            scratch_dir=str(self._folder / "scratch"),
            **values,
        )
