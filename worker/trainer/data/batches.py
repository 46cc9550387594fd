"""The plan of a run's batches, and the batches themselves, prepared ahead with their draws.

The order is a function of (seed, epoch), and any batch can be made without the earlier ones: a run
resumes in the middle of an epoch without replaying its start.
"""

import signal
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tasks.buckets import Size
from tasks.cache.plan import CacheIndex
from tasks.data.crops import CENTRE, covering_size, crop_corner, cropped, resized_to_cover
from tasks.dataset import Dataset
from tasks.jobs.pipeline import PipelineConfig
from tasks.store import Store
from worker.trainer.data.cache_entries import VAE_FACTOR, CachedEntries
from worker.trainer.data.images import latent_mask, load_image, load_mask, pixels
from worker.trainer.rng import StatelessRng

Kind = Literal["normal", "uniform"]

_AHEAD = 2
"""Batches that are ready, or in preparation, while the GPU has work of one."""


@dataclass(frozen=True)
class Draw:
    """Random numbers that a recipe's loss takes for each sample: the same ones in any batch.

    Attributes:
        kind: The distribution: standard normal, or uniform in [0, 1).
        purpose: Each purpose has its own draws.
        channels: C, for numbers in the shape of latents; None for a single number.
    """

    kind: Kind
    purpose: str
    channels: int | None = None

    def make(
        self, rng: StatelessRng, epoch: int, samples: Sequence[int], size: Size
    ) -> torch.Tensor:
        """Return the numbers of samples of a size, (B, C, h, w) or (B,), float32."""
        draw = rng.normal if self.kind == "normal" else rng.uniform
        shape: tuple[int, ...] = ()
        if self.channels is not None:
            shape = (self.channels, size.height // VAE_FACTOR, size.width // VAE_FACTOR)
        return torch.stack([draw(shape, self.purpose, epoch, sample) for sample in samples])


@dataclass(frozen=True)
class Batch:
    """Samples of one size. Of each pair, pixels or latents and captions or embeddings, one is set.

    Attributes:
        epoch: The number of the pass over the dataset.
        samples: Their numbers in the dataset; with ``epoch`` they place every random draw.
        captions: The captions as they are encoded.
        weights: (B,), the weights of the samples' losses.
        time_ids: (B, 6): original height and width, top and left of the crop, height and width:
            SDXL's size conditioning (Podell et al., 2023).
        masks: (B, 1, h, w) in [0, 1] at the latents' size, if the config uses masks.
        pixels: (B, 3, H, W) in [-1, 1].
        latent_mean: (B, C, h, w).
        latent_logvar: (B, C, h, w).
        prompt_embeds: (B, tokens, width).
        pooled: (B, width).
        draws: The random numbers of the loss, by purpose.
    """

    epoch: int
    samples: tuple[int, ...]
    captions: tuple[str, ...]
    weights: torch.Tensor
    time_ids: torch.Tensor
    masks: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_logvar: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    draws: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to a device; from pinned memory without waiting for the copy."""
        return self._copied(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy the tensors to pinned memory; the data loader calls it."""
        return self._copied(torch.Tensor.pin_memory)

    def _copied(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {
            name: copy(value) for name, value in values.items() if torch.is_tensor(value)
        }
        draws = {purpose: copy(draw) for purpose, draw in self.draws.items()}
        return replace(self, draws=draws, **tensors)


class BatchPlan:
    """The plan of a run: the samples of each batch of each epoch.

    Samples are drawn in one order an epoch and dealt to their buckets; batches come in the order
    of their first samples. In one bucket, two batches of 1 therefore hold the samples of one batch
    of 2. A bucket's last batch may be incomplete, and so may an epoch's last group of accumulated
    batches: no sample is left out or seen twice.

    Args:
        sizes: The size of each sample.
        batch_size: Samples of a batch.
        accumulation: Batches of one weight update.
        rng: Draws the order.
    """

    def __init__(
        self, sizes: Sequence[Size], batch_size: int, accumulation: int, rng: StatelessRng
    ) -> None:
        self.sizes = tuple(sizes)
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._rng = rng
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self.batches_per_epoch = len(self.epoch(0))
        self.steps_per_epoch = -(-self.batches_per_epoch // accumulation)

    def _epoch(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        """Return the batches of an epoch, each the numbers of its samples."""
        open_batches: dict[Size, list[int]] = defaultdict(list)
        batches: list[list[int]] = []
        for sample in self._rng.order(len(self.sizes), "order", epoch):
            size = self.sizes[sample]
            if len(open_batches[size]) in (0, self._batch_size):
                open_batches[size] = []
                batches.append(open_batches[size])
            open_batches[size].append(sample)
        return tuple(tuple(batch) for batch in batches)

    def of_step(self, step: int) -> tuple[int, int]:
        """Return the numbers of a weight update's first batch and of the first batch after it.

        Batches are numbered through the whole run; see ``batch``.
        """
        epoch, group = divmod(step, self.steps_per_epoch)
        start = group * self._accumulation
        end = min(start + self._accumulation, self.batches_per_epoch)
        offset = epoch * self.batches_per_epoch
        return offset + start, offset + end

    def samples_of_step(self, step: int) -> list[tuple[int, ...]]:
        """Return the samples of each batch of a weight update."""
        return [self.batch(number)[1] for number in range(*self.of_step(step))]

    def batch(self, number: int) -> tuple[int, tuple[int, ...]]:
        """Return the epoch and the samples of a batch."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return epoch, self.epoch(epoch)[place]


class SampleReader:
    """Reads samples at their training size; safe to send to another process.

    Args:
        store_url: The store of the images and the cache.
        dataset: The samples.
        config: The run's config.
        index: The samples' cache entries, if anything is cached.
        rng: Draws flips, crops and captions.
    """

    def __init__(
        self,
        store_url: str,
        dataset: Dataset,
        config: PipelineConfig,
        index: CacheIndex | None,
        rng: StatelessRng,
    ) -> None:
        self._store_url = store_url
        self._store: Store | None = None
        self._dataset = dataset
        self._config = config
        self._index = index
        self._cached: CachedEntries | None = None
        self._rng = rng
        self.sizes = dataset.sizes_in(config.loader.sizes())
        self._kept: dict[int, Image.Image] = {}
        self._keep_in_memory = [
            getattr(source, "keep_in_memory", False) for source in config.loader.sources()
        ]

    def read(self, epoch: int, samples: tuple[int, ...], draws: Sequence[Draw] = ()) -> Batch:
        """Read the batch of these samples, and make its draws."""
        captions = tuple(self._caption(epoch, sample) for sample in samples)
        parts = [self._sample(epoch, *pair) for pair in zip(samples, captions, strict=True)]
        return Batch(
            epoch,
            samples,
            captions,
            draws={
                draw.purpose: draw.make(self._rng, epoch, samples, self.sizes[samples[0]])
                for draw in draws
            },
            **{name: torch.stack([part[name] for part in parts]) for name in parts[0]},
        )

    def _caption(self, epoch: int, sample: int) -> str:
        loader = self._config.loader
        chances: list[float] = []
        if loader.caption_draws:
            draws = self._rng.uniform((loader.caption_draws,), "caption", epoch, sample)
            chances = draws.tolist()
        return self._config.caption(self._dataset.samples[sample], chances)

    def _sample(self, epoch: int, sample: int, caption: str) -> dict[str, torch.Tensor]:
        loader = self._config.loader
        # One draw in [0, 1) for each sample and epoch, whether latents are cached or not.
        chance = self._rng.uniform((1,), "flip", epoch, sample).item()
        flipped = loader.random_flip and chance < 0.5
        place = self._place(epoch, sample)
        found = {
            "weights": torch.tensor(loader.loss_weight(self._dataset.samples[sample].part)),
            "time_ids": self._time_ids(sample, place),
        }
        if self._config.use_masks:
            found["masks"] = self._mask(sample, place, flipped=flipped)
        entries = self._index.samples[sample] if self._index is not None else None
        key = entries and (entries.flipped_latents if flipped else entries.latents)
        if key:
            latents = self._open_cache().latents(key, self.sizes[sample])
            found |= {"latent_mean": latents.mean, "latent_logvar": latents.logvar}
        else:
            image = cropped(self._resized(sample), self.sizes[sample], place)
            found["pixels"] = pixels(image, flipped=flipped)
        text_key = entries and entries.text
        if text_key and self._index is not None:
            # A dropped caption is the blank one.
            key = text_key if caption else self._index.blank_text
            text = self._open_cache().text(key or text_key, self._config.text_tokens)
            found |= {"prompt_embeds": text.prompt_embeds, "pooled": text.pooled}
        return found

    def _place(self, epoch: int, sample: int) -> tuple[float, float]:
        if self._config.loader.center_crop:
            return CENTRE
        across, down = self._rng.uniform((2,), "crop", epoch, sample).tolist()
        return across, down

    def _time_ids(self, sample: int, place: tuple[float, float]) -> torch.Tensor:
        """Return SDXL's size conditioning of an image, (6,) float32; see ``Batch.time_ids``."""
        original, size = self._dataset.samples[sample].size, self.sizes[sample]
        left, top = crop_corner(covering_size(original, size), size, place)
        return torch.tensor(
            [original.height, original.width, top, left, size.height, size.width],
            dtype=torch.float32,
        )

    def _mask(self, sample: int, place: tuple[float, float], *, flipped: bool) -> torch.Tensor:
        """Return the sample's mask at the latents' size, (1, h, w); ones without a mask."""
        size = self.sizes[sample]
        mask = self._dataset.samples[sample].mask
        if mask is None:
            return torch.ones(1, size.height // VAE_FACTOR, size.width // VAE_FACTOR)
        image = load_mask(self._open(), self._dataset.samples[sample].source, mask)
        image = cropped(resized_to_cover(image, size), size, place)
        return latent_mask(image, VAE_FACTOR, flipped=flipped)

    def _resized(self, sample: int) -> Image.Image:
        if sample in self._kept:
            return self._kept[sample]
        image = load_image(self._open(), self._dataset.samples[sample])
        image = resized_to_cover(image, self.sizes[sample])
        if self._keep_in_memory[self._dataset.samples[sample].part]:
            self._kept[sample] = image
        return image

    def _open(self) -> Store:
        if self._store is None:
            self._store = Store(self._store_url)
        return self._store

    def _open_cache(self) -> CachedEntries:
        if self._cached is None:
            packs = self._index.packs if self._index is not None else {}
            self._cached = CachedEntries(self._open(), packs)
        return self._cached

    def __getstate__(self) -> dict[str, Any]:
        # A store's connections belong to its process.
        return {**self.__dict__, "_store": None, "_cached": None, "_kept": {}}


class _NumberedBatches(TorchDataset[Batch]):
    def __init__(
        self, reader: SampleReader, plan: BatchPlan, start: int, end: int, draws: Sequence[Draw]
    ) -> None:
        self._reader = reader
        self._draws = draws
        self._batches = [plan.batch(number) for number in range(start, end)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> Batch:
        return self._reader.read(*self._batches[place], self._draws)


class TrainingData:
    """The batches of a run, on its device.

    Args:
        reader: Reads the samples.
        plan: The plan of the batches.
        dataset: The samples.
        workers: Processes that read ahead; with 0 a thread of this process does, two batches.
        device: The device of the batches.
    """

    def __init__(
        self,
        reader: SampleReader,
        plan: BatchPlan,
        dataset: Dataset,
        workers: int,
        device: torch.device,
    ) -> None:
        self._reader = reader
        self.plan = plan
        self.dataset = dataset
        self._workers = workers
        self._device = device

    def example(self, draws: Sequence[Draw] = ()) -> Batch:
        """Read the run's first batch."""
        return self._reader.read(*self.plan.batch(0), draws).to(self._device)

    def batches(
        self, start_step: int, end_step: int, draws: Sequence[Draw] = ()
    ) -> Generator[Batch, None, None]:
        """Prepare the batches of these steps, the same with any number of workers.

        A thread is two batches ahead, until the generator ends or is closed. Its errors are raised
        here, when their batch is due.

        Args:
            start_step: The first weight update.
            end_step: The weight update after the last.
            draws: The random numbers of each batch.
        """
        start = self.plan.of_step(start_step)[0]
        end = self.plan.of_step(end_step)[0]
        loader: DataLoader[Batch] = DataLoader(
            _NumberedBatches(self._reader, self.plan, start, end, draws),
            batch_size=None,
            shuffle=False,
            num_workers=self._workers,
            # A fork of a process with the store's threads would hang.
            multiprocessing_context="spawn" if self._workers else None,
            worker_init_fn=ignore_stop_signal,
            # Copies to a GPU from pinned memory do not block the CPU.
            pin_memory=self._device.type == "cuda",
            # The loader draws a seed for its workers, which nothing uses: not from the global one.
            generator=torch.Generator(),
        )
        source = iter(loader)
        thread = ThreadPoolExecutor(1, "batches")
        try:
            ahead = deque(thread.submit(next, source) for _ in range(min(_AHEAD, end - start)))
            for number in range(start, end):
                batch = ahead.popleft().result()
                if number + _AHEAD < end:
                    ahead.append(thread.submit(next, source))
                yield batch.to(self._device)
        finally:
            thread.shutdown(cancel_futures=True)


def ignore_stop_signal(_worker: int) -> None:
    """Ignore SIGTERM in a data loader's process: the training process still needs its batches."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
