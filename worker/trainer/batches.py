"""Which samples make which batch, and the batches themselves, read ahead by worker processes.

The order is a function of (seed, epoch), and any batch can be made without those before it: a run
resumes in the middle of an epoch without replaying its start.
"""

import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tasks.buckets import Size, nearest_bucket
from tasks.dataset import DataSet
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.store import Store
from worker.trainer.cache_entries import CacheIndex, read_latents, read_text
from worker.trainer.draws import Draws
from worker.trainer.pictures import CENTRE, cropped, load_picture, pixels, resized_to_cover


@dataclass(frozen=True)
class Batch:
    """Samples of one size. Of each pair, pixels or latents and captions or embeddings, one is set.

    Attributes:
        epoch: Which pass over the data set.
        samples: Their numbers in the data set; with ``epoch`` they place every random draw.
        pixels: (B, 3, H, W) in [-1, 1].
        latent_mean: (B, 16, h, w).
        latent_logvar: (B, 16, h, w).
        captions: After the prefix.
        prompt_embeds: (B, tokens, 4096).
        pooled: (B, 768).
    """

    epoch: int
    samples: tuple[int, ...]
    captions: tuple[str, ...]
    pixels: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_logvar: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    pooled: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same on a device, copied while the CPU goes on where memory is pinned."""
        return replace(
            self, **{name: t.to(device, non_blocking=True) for name, t in self._tensors().items()}
        )

    def pin_memory(self) -> "Batch":
        """The same in pinned memory; the data loader calls it."""
        return replace(self, **{name: t.pin_memory() for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if torch.is_tensor(value)}


class BatchPlan:
    """Which samples make which batch of which epoch.

    Samples are drawn in one order an epoch and dealt to their buckets; batches come in the order
    of their first samples. In one bucket, two batches of 1 are therefore one batch of 2. A
    bucket's last batch may be incomplete, and so may an epoch's last group of accumulated
    batches: both count as they are, and no sample is left out or seen twice.

    Args:
        sizes: The size of each sample.
        batch_size: Samples of a batch.
        accumulation: Batches that make one weight update.
        draws: Decide the order.
    """

    def __init__(
        self, sizes: Sequence[Size], batch_size: int, accumulation: int, draws: Draws
    ) -> None:
        self.sizes = tuple(sizes)
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._draws = draws
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self.batches_per_epoch = len(self.epoch(0))
        self.steps_per_epoch = -(-self.batches_per_epoch // accumulation)

    def _epoch(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        """The batches of an epoch, each the numbers of its samples."""
        open_batches: dict[Size, list[int]] = defaultdict(list)
        batches: list[list[int]] = []
        for sample in self._draws.order(len(self.sizes), "order", epoch):
            size = self.sizes[sample]
            if len(open_batches[size]) in (0, self._batch_size):
                open_batches[size] = []
                batches.append(open_batches[size])
            open_batches[size].append(sample)
        return tuple(tuple(batch) for batch in batches)

    def of_step(self, step: int) -> tuple[int, int]:
        """The numbers of the first batch of a weight update and of the first after it.

        Batches are numbered through the whole run; ``batch`` finds one.
        """
        epoch, group = divmod(step, self.steps_per_epoch)
        start = group * self._accumulation
        end = min(start + self._accumulation, self.batches_per_epoch)
        offset = epoch * self.batches_per_epoch
        return offset + start, offset + end

    def batch(self, number: int) -> tuple[int, tuple[int, ...]]:
        """The epoch and the samples of a batch."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return epoch, self.epoch(epoch)[place]


def captions_of(data_set: DataSet, config: FluxLoraConfig) -> tuple[str, ...]:
    """The caption of each sample after the prefix."""
    prefix = config.data_loader.caption_prefix
    start = "" if prefix is None else f"{prefix} "
    return tuple(start + sample.caption for sample in data_set.samples)


def sizes_of(data_set: DataSet, config: FluxLoraConfig) -> tuple[Size, ...]:
    """The training size of each sample."""
    buckets = config.data_loader.sizes()
    return tuple(nearest_bucket(sample.size, buckets) for sample in data_set.samples)


class SampleReader:
    """Reads samples at their training size; safe to send to another process.

    Args:
        store_url: Where they are.
        data_set: Which there are.
        config: How they become training samples.
        index: Their cache entries, where something is cached.
        draws: Decide flips and crops.
    """

    def __init__(
        self,
        store_url: str,
        data_set: DataSet,
        config: FluxLoraConfig,
        index: CacheIndex | None,
        draws: Draws,
    ) -> None:
        self._store_url = store_url
        self._store: Store | None = None
        self._data_set = data_set
        self._config = config
        self._index = index
        self._draws = draws
        self._captions = captions_of(data_set, config)
        self.sizes = sizes_of(data_set, config)
        self._kept: dict[int, Image.Image] = {}
        data_set_config = config.data_loader.dataset
        self._keep_in_memory = getattr(data_set_config, "keep_in_memory", False)

    def read(self, epoch: int, samples: tuple[int, ...]) -> Batch:
        """The batch of these samples."""
        parts = [self._sample(epoch, sample) for sample in samples]
        return Batch(
            epoch,
            samples,
            tuple(self._captions[sample] for sample in samples),
            **{name: torch.stack([part[name] for part in parts]) for name in parts[0]},
        )

    def _sample(self, epoch: int, sample: int) -> dict[str, torch.Tensor]:
        loader = self._config.data_loader
        # One draw in [0, 1) for each sample and epoch: the same whether latents are cached or not.
        chance = self._draws.uniform((1,), "flip", epoch, sample).item()
        flipped = loader.random_flip and chance < 0.5
        found: dict[str, torch.Tensor] = {}
        entries = self._index.samples[sample] if self._index is not None else None
        key = entries and (entries.flipped_latents if flipped else entries.latents)
        if key:
            latents = read_latents(self._open(), key, self.sizes[sample])
            found |= {"latent_mean": latents.mean, "latent_logvar": latents.logvar}
        else:
            found["pixels"] = pixels(self._cropped(epoch, sample), flipped=flipped)
        if entries and entries.text:
            text = read_text(self._open(), entries.text, self._config)
            found |= {"prompt_embeds": text.prompt_embeds, "pooled": text.pooled}
        return found

    def _cropped(self, epoch: int, sample: int) -> Image.Image:
        place = CENTRE
        if not self._config.data_loader.center_crop:
            across, down = self._draws.uniform((2,), "crop", epoch, sample).tolist()
            place = (across, down)
        return cropped(self._resized(sample), self.sizes[sample], place)

    def _resized(self, sample: int) -> Image.Image:
        if sample in self._kept:
            return self._kept[sample]
        picture = load_picture(self._open(), self._data_set.samples[sample])
        picture = resized_to_cover(picture, self.sizes[sample])
        if self._keep_in_memory:
            self._kept[sample] = picture
        return picture

    def _open(self) -> Store:
        if self._store is None:
            self._store = Store(self._store_url)
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        # A store's connections belong to its process.
        return {**self.__dict__, "_store": None, "_kept": {}}


class _NumberedBatches(Dataset[Batch]):
    def __init__(self, reader: SampleReader, plan: BatchPlan, start: int, end: int) -> None:
        self._reader = reader
        self._batches = [plan.batch(number) for number in range(start, end)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> Batch:
        return self._reader.read(*self._batches[place])


class TrainingData:
    """The batches of a run, on its device.

    Args:
        reader: Reads them.
        plan: Says what is in them.
        data_set: The samples they are made of.
        workers: Processes that read ahead; 0 reads when asked.
        device: Where batches go.
    """

    def __init__(
        self,
        reader: SampleReader,
        plan: BatchPlan,
        data_set: DataSet,
        workers: int,
        device: torch.device,
    ) -> None:
        self._reader = reader
        self.plan = plan
        self.data_set = data_set
        self._workers = workers
        self._device = device

    def batches(self, start_step: int, end_step: int) -> Iterator[Batch]:
        """The batches of these steps, the same with any number of workers."""
        start = self.plan.of_step(start_step)[0]
        end = self.plan.of_step(end_step)[0]
        loader: DataLoader[Batch] = DataLoader(
            _NumberedBatches(self._reader, self.plan, start, end),
            batch_size=None,
            shuffle=False,
            num_workers=self._workers,
            # Forking a process that has the store's threads in it hangs.
            multiprocessing_context="spawn" if self._workers else None,
            worker_init_fn=_ignore_stop_signal,
            # From pinned memory a GPU copies by itself, while the CPU goes on.
            pin_memory=self._device.type == "cuda",
            # The loader draws a seed for its workers; nothing reads it.
            generator=torch.Generator(),
        )
        return (batch.to(self._device) for batch in loader)


def _ignore_stop_signal(_worker: int) -> None:
    """A stop is the training process's business; its workers read on until it is done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
