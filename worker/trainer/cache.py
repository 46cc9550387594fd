"""The ``cache`` stage: encodes what the store has no entry of, and writes the index.

Encoders load only when something of their kind is missing, one kind after the other. They see
one caption or image at a time: in a batch, the last bits of an entry would depend on what else
was missing that day, and an entry made anew would not be the one a run was trained on. One image,
or 512 tokens, fills a GPU already.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from tasks.data.buckets import Size
from tasks.data.dataset import DataSet
from tasks.events import CacheDone, Progress
from tasks.requests import TrainerRequest
from tasks.store import Store, cache_index_key
from worker.trainer.base_model import text_digest, vae_digest
from worker.trainer.batches import sizes_of
from worker.trainer.cache_entries import (
    CacheIndex,
    Latents,
    SampleEntries,
    Text,
    cache_settings,
    latents_bytes,
    latents_key,
    read_latents,
    read_text,
    text_bytes,
    text_key,
    text_tokens,
)
from worker.trainer.errors import DamagedFileError, NotFiniteError
from worker.trainer.kept import KeptModels
from worker.trainer.libraries import check_libraries
from worker.trainer.pictures import CENTRE, cropped, load_picture, pixels, resized_to_cover
from worker.trainer.pipe import Emit, ProgressMeter, StopSwitch

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Caption:
    caption: str


@dataclass(frozen=True)
class _Picture:
    """One image as the VAE is to see it; ``sample`` is one of those that show it."""

    image: str
    sample: int
    size: Size
    flipped: bool


def run(request: TrainerRequest, emit: Emit, stop: StopSwitch, kept: KeptModels) -> None:
    """Carry out a ``cache`` request and tell its end.

    Raises:
        RefusedError: It cannot be carried out.
        InterruptedRun: It was asked to stop; the entries made so far stay.
        StoreError: The store failed.
    """
    # What training will lack is told before anything is encoded for it.
    check_libraries(request.training)
    store = Store(request.store_url)
    data_set = DataSet.model_validate_json(store.get(request.data_set_key))
    stage = _CacheStage(request, store, data_set, emit, stop, kept)
    texts, encoded_captions = stage.texts()
    latents, encoded_images = stage.latents()
    index = stage.index(texts, latents)
    key = cache_index_key(request.job_id)
    store.put(key, index.model_dump_json(indent=1).encode())
    images = len({sample.image for sample in data_set.samples}) if latents else 0
    emit(
        CacheDone(
            index_key=key,
            encoded_images=encoded_images,
            encoded_captions=encoded_captions,
            reused_images=images - encoded_images,
            reused_captions=len(texts) - encoded_captions,
        )
    )


class _CacheStage:
    def __init__(
        self,
        request: TrainerRequest,
        store: Store,
        data_set: DataSet,
        emit: Emit,
        stop: StopSwitch,
        kept: KeptModels,
    ) -> None:
        self._config = request.training
        self._store = store
        self._data_set = data_set
        self._emit = emit
        self._stop = stop
        self._kept = kept
        self._device = torch.device(request.device)
        loader = self._config.loader
        self._sizes = sizes_of(data_set, loader)
        # A cached caption is always the same one: only drops are drawn, and their entry is blank.
        self._captions = (
            [loader.caption(sample, ()) for sample in data_set.samples]
            if self._config.caches_text
            else [""] * len(data_set.samples)
        )
        negative = getattr(self._config, "negative_validation_prompts", None)
        self._prompts = (self._config.validation_prompts, tuple(negative or ()))

    def texts(self) -> tuple[dict[_Caption, str], int]:
        """The entry of each caption and prompt, and how many were encoded now."""
        config = self._config
        if not config.caches_text:
            return {}, 0
        digest = text_digest(config)
        # The blank caption stands for a dropped one; prompts are encoded as captions are.
        wanted = {"", *self._captions, *self._prompts[0], *self._prompts[1]}
        keys = {_Caption(it): text_key(it, config, digest) for it in sorted(wanted)}
        tokens = text_tokens(config)
        missing = self._missing(keys, lambda _, key: read_text(self._store, key, tokens))
        if not missing:
            return keys, 0
        models = importlib.import_module("worker.trainer.models")
        encoders = models.take_text(config, self._device, self._kept)
        meter = ProgressMeter(self._emit)
        for done, item in enumerate(missing, start=1):
            self._stop.check()
            with torch.no_grad():
                encoded: Text = encoders.encode([item.caption])
            text = Text(encoded.prompt_embeds[0], encoded.pooled[0])
            what = f"the text encoders' output of the caption {item.caption!r}"
            _check_finite(what, text.prompt_embeds, text.pooled)
            self._write(keys[item], text_bytes(text), damaged=missing[item])
            meter.tell(Progress(stage="cache", done=done, total=len(missing), unit="captions"))
        return keys, len(missing)

    def latents(self) -> tuple[dict[_Picture, str], int]:
        """The entry of each picture and mirroring, and how many images were encoded now."""
        config = self._config
        if not config.cache_vae_outputs:
            return {}, 0
        digest = vae_digest(config)
        keys = {
            picture: latents_key(picture.image, picture.size, picture.flipped, digest)
            for picture in self._pictures()
        }
        missing = self._missing(keys, lambda it, key: read_latents(self._store, key, it.size))
        if not missing:
            return keys, 0
        models = importlib.import_module("worker.trainer.models")
        inputs = importlib.import_module("worker.trainer.inputs")
        vae = models.take_vae(config, self._device, self._kept)
        meter = ProgressMeter(self._emit)
        # One size after the other: cuDNN looks for its fastest kernels once a size.
        for done, item in enumerate(sorted(missing, key=lambda item: item.size), start=1):
            self._stop.check()
            values = self._pixels(item)[None]  # (1, 3, H, W)
            encoded: Latents = inputs.encode_pixels(vae, values.to(self._device))
            source = self._data_set.samples[item.sample].source
            _check_finite(f"the VAE's output of the image {source}", encoded.mean, encoded.logvar)
            entry = latents_bytes(Latents(encoded.mean[0], encoded.logvar[0]))
            self._write(keys[item], entry, damaged=missing[item])
            meter.tell(Progress(stage="cache", done=done, total=len(missing), unit="images"))
        return keys, len({item.image for item in missing})

    def index(self, texts: dict[_Caption, str], latents: dict[_Picture, str]) -> CacheIndex:
        """Which entries belong to which samples."""
        by_picture = {(it.image, it.size, it.flipped): key for it, key in latents.items()}
        rows = zip(self._data_set.samples, self._captions, self._sizes, strict=True)
        return CacheIndex(
            data_set=self._data_set.digest,
            settings=cache_settings(self._config),
            samples=tuple(
                SampleEntries(
                    text=texts.get(_Caption(caption)),
                    latents=by_picture.get((sample.image, size, False)),
                    flipped_latents=by_picture.get((sample.image, size, True)),
                )
                for sample, caption, size in rows
            ),
            blank_text=texts.get(_Caption("")),
            prompt_texts=tuple(texts[_Caption(it)] for it in self._prompts[0] if texts),
            negative_texts=tuple(texts[_Caption(it)] for it in self._prompts[1] if texts),
        )

    def _pictures(self) -> Iterator[_Picture]:
        seen = set()
        flips = (False, True) if self._config.loader.random_flip else (False,)
        for number, sample in enumerate(self._data_set.samples):
            size = self._sizes[number]
            if (sample.image, size) not in seen:
                seen.add((sample.image, size))
                yield from (_Picture(sample.image, number, size, flipped) for flipped in flips)

    def _pixels(self, item: _Picture) -> torch.Tensor:
        picture = load_picture(self._store, self._data_set.samples[item.sample])
        picture = cropped(resized_to_cover(picture, item.size), item.size, CENTRE)
        return pixels(picture, flipped=item.flipped)  # (3, H, W)

    def _missing(
        self, keys: dict[Item, str], read: Callable[[Item, str], object]
    ) -> dict[Item, bool]:
        """The items without a sound entry, and whether theirs is there but damaged."""
        found = {}
        for item, key in keys.items():
            self._stop.check()
            if not self._store.exists(key):
                found[item] = False
                continue
            try:
                read(item, key)
            except DamagedFileError:
                found[item] = True
        return found

    def _write(self, key: str, entry: bytes, *, damaged: bool) -> None:
        if damaged:
            self._store.put(key, entry)
        else:
            # Another job may have made the same entry meanwhile; either will do.
            self._store.put_if_absent(key, entry)


def _check_finite(what: str, *tensors: torch.Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise NotFiniteError(what, "set weight_dtype to bfloat16, whose range is float32's")
