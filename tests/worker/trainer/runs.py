"""Trainer requests on tiny models, in this process or in one of their own."""

import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from safetensors import safe_open

from tasks.cache.packs import read_header
from tasks.cache.plan import CachePlan, encoder_digests
from tasks.dataset import Dataset, Sample, dataset_of
from tasks.events import CheckpointSaved, Event, PackStored, TrainDone, parse_event
from tasks.jobs.job import parse_job
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlLoraConfig
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import PACKS, Store, cache_index_key, dataset_key, image_key
from worker.trainer import cache, train
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache

CAPTIONS = ("a photo of a cat", "the red square", "a dog on the green", "blue", "in the photo")
BUCKETS = {"target_resolution": 64, "start_dim": 32, "end_dim": 128, "divisible_by": 32}
CACHED: dict[str, Any] = {"cache_text_encoder_outputs": True, "cache_vae_outputs": True}

_Kind = TypeVar("_Kind")

# Most runs of a test process share their models, as those of a trainer process do: loading takes
# longer than a few tiny steps. A run that fails drops them.
_shared = [ModelCache()]

# Starts never share a checkpoint: a run without a given start gets the next number.
_starts = itertools.count(100)


@dataclass
class Images:
    """A dataset in its own store."""

    folder: Path
    store: Store
    dataset: Dataset

    def edited(
        self, image: int | None = None, caption: int | None = None, seed: int = 99
    ) -> "Images":
        """Return a copy with another image or another caption in one place."""
        samples = list(self.dataset.samples)
        if image is not None:
            old = samples[image]
            changed = put_image(self.store, old.width, old.height, seed)
            samples[image] = old.model_copy(update={"image": changed})
        if caption is not None:
            samples[caption] = samples[caption].model_copy(update={"caption": "another cat"})
        return Images(self.folder, self.store, put_dataset(self.store, samples))


def put_image(store: Store, width: int, height: int, seed: int) -> str:
    """Store a smooth random image and return its digest."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    file = io.BytesIO()
    image.save(file, "PNG")
    store.put(image_key(digest), file.getvalue())
    return digest


def put_dataset(store: Store, samples: Sequence[Sample]) -> Dataset:
    dataset = dataset_of(samples)
    store.put(dataset_key(dataset.digest), dataset.model_dump_json().encode())
    return dataset


def images(
    folder: Path,
    sizes: Sequence[tuple[int, int]] = ((64, 64), (96, 48), (48, 96), (70, 64), (99, 50)),
) -> Images:
    """Store a dataset of random images of these sizes."""
    store = Store(f"file://{folder}/store")
    samples = [
        Sample(
            image=put_image(store, width, height, number),
            width=width,
            height=height,
            caption=f"{CAPTIONS[number % len(CAPTIONS)]} {number}",
            source=f"image-{number}.png",
        )
        for number, (width, height) in enumerate(sizes)
    ]
    return Images(folder, store, put_dataset(store, samples))


def config_of(model: Path | str, *, loader: Any = None, **options: Any) -> Any:
    """Return a FLUX LoRA config whose values may all be overridden."""
    data_loader = {
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/unused"},
        "resolution": 64,
        **(loader or {}),
    }
    values: dict[str, Any] = {
        "seed": 7,
        "model": str(model),
        "weight_dtype": "float32",
        "transformer_learning_rate": 1e-2,
        "lr_warmup_steps": 0,
        # No caption is longer with the tiny tokenizer.
        "t5_tokenizer_max_length": 32,
        "data_loader": data_loader,
    }
    if not {"max_train_steps", "max_train_epochs"} & set(options):
        values["max_train_steps"] = 4
    if not {"save_every_n_steps", "save_every_n_epochs"} & set(options):
        values["save_every_n_steps"] = 1000
    return parse_job({"training": {"type": "FLUX_LORA", **values, **options}}).training


# The smallest config of each type that trains on the tiny SDXL.
ALL_TARGETS = SdxlLoraConfig.model_fields["unet_lora_target_modules"].default
SDXL_TYPES: dict[str, dict[str, Any]] = {
    "SDXL_LORA": {
        # Adding a LoRA to each of the 281 layers takes longer than a few tiny steps.
        "unet_lora_target_modules": ["to_q", "to_v"],
        "data_loader": {"type": "IMAGE_CAPTION_SD_DATA_LOADER"},
    },
    "SDXL_FINETUNE": {"data_loader": {"type": "IMAGE_CAPTION_SD_DATA_LOADER"}},
    "SDXL_TEXTUAL_INVERSION": {
        "placeholder_token": "<thing>",
        "initial_phrase": "red cat",
        "data_loader": {
            "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
            "caption_templates": ["a photo of {}", "the {}"],
        },
    },
}


def sdxl_config_of(kind: str, model: Path | str, *, loader: Any = None, **options: Any) -> Any:
    """Return an SDXL config of a type whose values may all be overridden."""
    base = SDXL_TYPES[kind]
    values: dict[str, Any] = {
        "type": kind,
        "seed": 7,
        "model": str(model),
        "hf_variant": None,
        "weight_dtype": "float32",
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": 1e-3},
        "train_batch_size": 2,
        **base,
        "data_loader": {
            "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/unused"},
            "resolution": 64,
            **base["data_loader"],
            **(loader or {}),
        },
    }
    if not {"max_train_steps", "max_train_epochs"} & set(options):
        values["max_train_steps"] = 4
    if not {"save_every_n_steps", "save_every_n_epochs"} & set(options):
        values["save_every_n_steps"] = 1000
    return parse_job({"training": {**values, **options}}).training


def request_of(data: Images, stage: str, config: PipelineConfig, **fields: Any) -> TrainerRequest:
    values = {
        "stage": stage,
        "job_id": "job",
        "start_id": "1",
        "name": "lora",
        "training": config,
        "dataset_key": dataset_key(data.dataset.digest),
        "store_url": data.store.url,
        "scratch_dir": str(data.folder / "scratch"),
        "device": "cpu",
    }
    return TrainerRequest(**{**values, **fields})


class Events(list[Event]):
    """The events of a run."""

    def of(self, kind: type[_Kind]) -> list[_Kind]:
        return [event for event in self if isinstance(event, kind)]


@dataclass
class Cached:
    """The result of a cache stage."""

    index_key: str
    encoded_images: int
    encoded_captions: int
    reused_images: int
    reused_captions: int


def run_cache(data: Images, config: PipelineConfig) -> Cached:
    """Make the missing entries and the job's index, as the stage does."""
    encoders = encoder_digests(config)
    plan = CachePlan(config, data.dataset, encoders)
    packs = packs_in(data.store)
    missing = tuple(digest for digest in plan.digests if digest not in packs)
    if missing:
        events = Events()
        request = request_of(data, "cache", config, encoders=encoders, cache_entries=missing)
        with _models(None) as models:
            cache.run(request, events.append, StopSwitch(), models)
        assert sorted(it for event in events.of(PackStored) for it in event.entries) == sorted(
            missing
        )
    key = cache_index_key("job")
    data.store.put(key, plan.index(packs_in(data.store)).model_dump_json().encode())
    images = {plan.latents[it].image for it in missing if it in plan.latents}
    captions = [it for it in missing if it in plan.texts]
    all_images = {image.image for image in plan.latents.values()}
    return Cached(
        key,
        len(images),
        len(captions),
        len(all_images) - len(images),
        len(plan.texts) - len(captions),
    )


def packs_in(store: Store) -> dict[str, str]:
    """Return the pack of each entry in a store."""
    return {digest: key for key in store.keys(PACKS) for digest in read_header(store, key)}


@contextmanager
def _models(given: ModelCache | None) -> Iterator[ModelCache]:
    try:
        yield given or _shared[0]
    except BaseException:
        _shared[0] = ModelCache()
        raise


@dataclass
class Trained:
    """The result of a train request."""

    data: Images
    events: Events

    @property
    def checkpoints(self) -> list[CheckpointSaved]:
        return self.events.of(CheckpointSaved)

    @property
    def done(self) -> TrainDone:
        return self.events.of(TrainDone)[-1]

    def state_bytes(self, number: int = -1) -> bytes:
        return self.data.store.get(self.checkpoints[number].state_key)

    @property
    def state(self) -> dict[str, Any]:
        """The tensors of the last state."""
        return read_tensors(self.path(self.checkpoints[-1].state_key))[0]

    @property
    def losses(self) -> list[float]:
        losses: list[float] = self.state["history"][:, 0].tolist()
        return losses

    @property
    def rates(self) -> list[float]:
        rates: list[float] = self.state["history"][:, 1].tolist()
        return rates

    @property
    def weights(self) -> Path:
        return self.path(self.checkpoints[-1].weights.key)

    def path(self, key: str) -> Path:
        path = self.data.store.local_path(key)
        assert path is not None
        return path


def run_train(
    data: Images,
    config: PipelineConfig,
    *,
    stop: StopSwitch | None = None,
    models: ModelCache | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    **fields: Any,
) -> Trained:
    """Cache if the config asks for it, then train, in this process.

    Args:
        data: The images.
        config: The run's config.
        stop: Whether to stop.
        models: The run's model cache; None for the one that all runs share.
        on_event: Called with each event.
        fields: Other fields of the request.
    """
    cached = config.caches_text or config.cache_vae_outputs
    if cached and "cache_index_key" not in fields:
        fields["cache_index_key"] = run_cache(data, config).index_key
    trained = Trained(data, Events())

    def emit(event: Event) -> None:
        trained.events.append(event)
        on_event(event)

    fields.setdefault("start_id", str(next(_starts)))
    request = request_of(data, "train", config, **fields)
    with _models(models) as cached_models:
        train.run(request, emit, stop or StopSwitch(), cached_models)
    return trained


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a safetensors file's tensors and metadata."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


class TrainerProcess:
    """A trainer process."""

    def __init__(self, *requests: TrainerRequest | str) -> None:
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.trainer", "--events-fd", str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[write],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(write)
        self._events = os.fdopen(read, "rb")
        lines = [r if isinstance(r, str) else r.model_dump_json() for r in requests]
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def events(self) -> Iterator[Event]:
        for line in self._events:
            if line.endswith(b"\n"):
                yield parse_event(line)

    def finish(self) -> tuple[Events, int, str]:
        """Return the remaining events, the exit code and the standard error."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        events = Events(self.events())
        self._events.close()
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        errors = self.process.stderr.read().decode()
        assert self.process.stdout.read() == b""
        self.process.stderr.close()
        self.process.stdout.close()
        return events, self.process.wait(), errors

    def signal_when(self, number: signal.Signals, ready: Callable[[Event], bool]) -> Events:
        """Send a signal once ``ready`` accepts an event; return the events until then."""
        seen = Events()
        for event in self.events():
            seen.append(event)
            if ready(event):
                self.process.send_signal(number)
                return seen
        raise AssertionError(f"the trainer ended first: {seen}")
