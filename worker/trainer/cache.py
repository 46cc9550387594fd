"""The ``cache`` stage: makes the cache entries of a request.

One kind after the other, so that one encoder at a time is on the GPU. Images are decoded ahead of
the encoder, and packs are written behind it. Batches of a kind and size always have one shape, the
last one padded with copies of its last item: the bits of an entry then depend on its item alone,
not on the other missing entries, and an entry that is made again is the one a run was trained on.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, groupby, islice
from typing import TypeVar

import torch

from tasks.buckets import Size
from tasks.cache.packs import pack_id
from tasks.cache.plan import CachePlan, ImageVariant, Kind, encoder_digests
from tasks.data.crops import CENTRE, cropped, resized_to_cover
from tasks.dataset import Dataset
from tasks.events import CacheDone, PackStored
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, pack_key
from worker.trainer.compute.determinism import Determinism
from worker.trainer.data.cache_entries import Latents, Text, pack_bytes
from worker.trainer.data.images import load_image, pixels
from worker.trainer.environment import check_libraries
from worker.trainer.errors import NotFiniteError
from worker.trainer.event_pipe import Emit, StopSwitch, phase
from worker.trainer.model_cache import ModelCache

CAPTIONS = 8
"""Captions of a batch: with 512 T5 tokens each they fill a GPU, and make a pack of 32 MiB."""
MAX_IMAGES = 8
"""Images of a batch, at most: more small ones would make a large pack."""

# Pixels of a batch: they fill a GPU, and the VAE's activations still fit the smallest class.
_PIXELS = 1024 * 1024
# Encoded batches that are being written; more would only take memory.
_MAX_WRITES = 2

_Item = TypeVar("_Item")


def run(request: TrainerRequest, emit: Emit, stop: StopSwitch, cache: ModelCache) -> None:
    """Carry out a ``cache`` request and report its end.

    Raises:
        RefusedError: The request cannot be carried out.
        InterruptedRun: The stage was asked to stop; the entries made so far stay.
        StoreError: The store failed.
    """
    # A library that training will lack is reported before anything is encoded for it.
    check_libraries(request.training)
    if request.encoders is None:
        # Large files are downloaded and read here, in a process that may be ended at any time.
        emit(CacheDone(encoders=encoder_digests(request.training)))
        return
    store = Store(request.store_url)
    dataset = Dataset.model_validate_json(store.get(request.dataset_key))
    plan = CachePlan(request.training, dataset, request.encoders)
    texts = [digest for digest in request.cache_entries if digest in plan.texts]
    latents = [digest for digest in request.cache_entries if digest in plan.latents]
    # Always: jobs share the entries, whatever their options.
    determinism = Determinism(emit, device=torch.device(request.device))
    encoder = _Encoder(request, store, dataset, plan, cache, determinism, emit)
    with phase(emit, "encode"), _Writer(store, emit) as writer:
        batches: Iterator[tuple[list[str], Text | Latents]]
        batches = chain(encoder.texts(texts), encoder.latents(latents))
        for digests, encoded in batches:
            stop.check()
            writer.write(plan.kind(digests[0]), digests, encoded, encoder.names(digests))
    emit(CacheDone())


def batch_size(size: Size) -> int:
    """Return the number of images of a size that are encoded at once."""
    return max(1, min(MAX_IMAGES, _PIXELS // size.pixels))


class _Encoder:
    """Encodes batches of entries; yields their digests and encodings, still on the device."""

    def __init__(
        self,
        request: TrainerRequest,
        store: Store,
        dataset: Dataset,
        plan: CachePlan,
        cache: ModelCache,
        determinism: Determinism,
        emit: Emit,
    ) -> None:
        self._determinism = determinism
        self._emit = emit
        self._config = request.training
        self._device = torch.device(request.device)
        self._store = store
        self._dataset = dataset
        self._plan = plan
        self._cache = cache

    def names(self, digests: Sequence[str]) -> list[str]:
        """Return what entries encode, for messages."""
        plan, samples = self._plan, self._dataset.samples
        return [
            f"the text encoders' output of the caption {plan.texts[digest]!r}"
            if digest in plan.texts
            else f"the VAE's output of the image {samples[plan.latents[digest].sample].source}"
            for digest in digests
        ]

    @torch.no_grad()
    def texts(self, digests: Sequence[str]) -> Iterator[tuple[list[str], Text]]:
        if not digests:
            return
        # Imported when needed: the families import every model library.
        from worker.trainer.families import take_text

        with phase(self._emit, "load"):
            encoders = take_text(self._config, self._device, self._cache)
        for batch in _in_batches(digests, CAPTIONS):
            captions = _padded([self._plan.texts[digest] for digest in batch], CAPTIONS)
            yield batch, self._determinism.run(partial(encoders.encode, captions))

    @torch.no_grad()
    def latents(self, digests: Sequence[str]) -> Iterator[tuple[list[str], Latents]]:
        if not digests:
            return
        from worker.trainer.base_model import take_vae
        from worker.trainer.data.inputs import encode_pixels

        with phase(self._emit, "load"):
            vae = take_vae(self._config, self._device, self._cache)
        for batch, values in self._decoded(list(self._batches(digests))):
            size = self._plan.latents[batch[0]].size
            stacked = torch.stack(_padded(values, batch_size(size)))  # (B, 3, H, W)
            if self._device.type == "cuda":
                stacked = stacked.pin_memory()
            stacked = stacked.to(self._device, non_blocking=True)
            yield batch, self._determinism.run(partial(encode_pixels, vae, stacked))

    def _batches(self, digests: Sequence[str]) -> Iterator[list[str]]:
        """Yield batches of one size after the other: cuDNN selects kernels once a size."""

        def size_of(digest: str) -> Size:
            return self._plan.latents[digest].size

        for size, group in groupby(sorted(digests, key=size_of), key=size_of):
            yield from _in_batches(group, batch_size(size))

    def _decoded(
        self, batches: Sequence[list[str]]
    ) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """Yield each batch with its images, decoded ahead: Pillow releases Python's lock."""
        rest = iter(batches)
        waiting: deque[tuple[list[str], list[Future[torch.Tensor]]]] = deque()
        # The last image: its mirrored variant follows, and is not decoded again.
        last: dict[ImageVariant, Future[torch.Tensor]] = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

            def decode(digest: str) -> Future[torch.Tensor]:
                image = replace(self._plan.latents[digest], flipped=False)
                if image not in last:
                    last.clear()
                    last[image] = pool.submit(self._pixels, image)
                return last[image]

            def submit(count: int) -> None:
                for batch in islice(rest, count):
                    waiting.append((batch, list(map(decode, batch))))

            submit(2)
            while waiting:
                batch, futures = waiting.popleft()
                values = [future.result() for future in futures]
                submit(1)
                flips = (self._plan.latents[digest].flipped for digest in batch)
                pairs = zip(values, flips, strict=True)
                yield batch, [value.flip(-1) if flipped else value for value, flipped in pairs]

    def _pixels(self, item: ImageVariant) -> torch.Tensor:
        image = load_image(self._store, self._dataset.samples[item.sample])
        image = cropped(resized_to_cover(image, item.size), item.size, CENTRE)
        return pixels(image, flipped=False)  # (3, H, W)


class _Writer:
    """Writes packs while the encoder works, and emits an event for each stored one."""

    def __init__(self, store: Store, emit: Emit) -> None:
        self._store = store
        self._emit = emit
        self._pool = ThreadPoolExecutor(_MAX_WRITES)
        self._waiting: deque[Future[PackStored]] = deque()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        """Report all packs, whatever ends the request."""
        with self._pool:
            while self._waiting:
                self._report_oldest()

    def write(
        self, kind: Kind, digests: Sequence[str], encoded: Text | Latents, names: Sequence[str]
    ) -> None:
        """Write one batch's pack; wait while the maximum of packs is being written.

        Args:
            kind: The kind of the entries.
            digests: The digests of the entries, in the batch's order.
            encoded: The encoded batch, which may be padded.
            names: What the entries encode, for messages.
        """
        while len(self._waiting) >= _MAX_WRITES:
            self._report_oldest()
        self._waiting.append(self._pool.submit(self._stored, kind, digests, encoded, names))

    def _report_oldest(self) -> None:
        self._emit(self._waiting.popleft().result())

    def _stored(
        self, kind: Kind, digests: Sequence[str], encoded: Text | Latents, names: Sequence[str]
    ) -> PackStored:
        # Waits for this batch only: the next one is queued on the GPU already.
        batch = {name: tensor.cpu() for name, tensor in vars(encoded).items()}
        entries = {}
        for row, (digest, name) in enumerate(zip(digests, names, strict=True)):
            tensors = {key: tensor[row] for key, tensor in batch.items()}
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                advice = "set weight_dtype to bfloat16, whose range is float32's"
                raise NotFiniteError(name, advice)
            entries[digest] = type(encoded)(**tensors)
        data = pack_bytes(entries)
        key = pack_key(kind, pack_id(digests))
        # Replaces a pack of the same key, which is identical or damaged.
        self._store.put(key, data)
        return PackStored(key=key, size=len(data), entries=tuple(digests))


def _in_batches(digests: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(digests)
    while batch := list(islice(rest, size)):
        yield batch


def _padded(items: list[_Item], count: int) -> list[_Item]:
    """Return ``count`` items, padded with copies of the last one."""
    return items + items[-1:] * (count - len(items))
