"""Cache entries as tensors: written in packs, read one by one, checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from tasks.buckets import Size
from tasks.cache.packs import (
    CHECKSUMS,
    DamagedPackError,
    TensorPlace,
    checksum,
    read_entry,
    read_header,
)
from tasks.cache.plan import CacheIndex, cache_settings
from tasks.jobs.pipeline import PipelineConfig
from tasks.store import Store
from worker.trainer.errors import DamagedFileError, StaleIndexError
from worker.trainer.export.safetensors_file import DTYPES, TYPE_NAMES, header_bytes, raw_bytes

VAE_FACTOR = 8
"""FLUX's and SDXL's VAEs make one latent of 8x8 pixels."""
_REMEDY = "run the cache stage again"
# Those of some 100,000 entries, in 100 MB; without a bound, a million entries take a gigabyte.
_KEPT_HEADERS = 10_000


@dataclass(frozen=True)
class Text:
    """The encoding of a caption; or of a batch, with a first dimension B more.

    Attributes:
        prompt_embeds: (tokens, width): T5's states in FLUX, (77, 2048) in SDXL.
        pooled: (width,): CLIP's (768,) in FLUX, the second encoder's (1280,) in SDXL.
    """

    prompt_embeds: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Latents:
    """The VAE's distribution of an image; or of a batch, with a first dimension B more.

    Attributes:
        mean: (C, h, w) float32; C is 16 in FLUX, 4 in SDXL.
        logvar: (C, h, w) float32.
    """

    mean: torch.Tensor
    logvar: torch.Tensor


def pack_bytes(entries: Mapping[str, Text | Latents]) -> bytes:
    """Return the bytes of a pack of entries.

    Args:
        entries: The entries by their digests.
    """
    tensors = {
        f"{digest}/{name}": tensor
        for digest, entry in entries.items()
        for name, tensor in vars(entry).items()
    }
    raw = {name: raw_bytes(tensors[name]) for name in sorted(tensors)}
    checksums = {digest: _checksum(digest, entries[digest], raw) for digest in sorted(entries)}
    header = header_bytes(tensors, {CHECKSUMS: json.dumps(checksums)})
    return b"".join([header, *raw.values()])


def _checksum(digest: str, entry: Text | Latents, raw: Mapping[str, bytes]) -> str:
    places, end = {}, 0
    for name, tensor in sorted(vars(entry).items()):
        start, end = end, end + len(raw[f"{digest}/{name}"])
        places[name] = TensorPlace(TYPE_NAMES[tensor.dtype], tuple(tensor.shape), start, end)
    return checksum(places, b"".join(raw[f"{digest}/{name}"] for name in places))


class CachedEntries:
    """Reads a job's entries.

    Args:
        store: The store of the packs.
        packs: The store key of each entry's pack.
    """

    def __init__(self, store: Store, packs: Mapping[str, str]) -> None:
        self._store = store
        self._packs = packs
        self._header = lru_cache(_KEPT_HEADERS)(partial(read_header, store))

    def text(self, digest: str, tokens: int) -> Text:
        """Read a text entry.

        Args:
            digest: The entry.
            tokens: The number of tokens that it must hold.

        Raises:
            DamagedFileError: It is damaged or missing.
        """
        text = Text(**self._read(digest, "prompt_embeds", "pooled"))
        if text.prompt_embeds.ndim != 2 or text.pooled.ndim != 1:
            raise self._damaged(digest, "wrong shapes")
        if len(text.prompt_embeds) != tokens:
            raise self._damaged(digest, "wrong number of tokens")
        return text

    def latents(self, digest: str, size: Size) -> Latents:
        """Read a latents entry.

        Args:
            digest: The entry.
            size: The size of its image.

        Raises:
            DamagedFileError: It is damaged or missing.
        """
        latents = Latents(**self._read(digest, "mean", "logvar"))
        expected = (size.height // VAE_FACTOR, size.width // VAE_FACTOR)
        for tensor in (latents.mean, latents.logvar):
            if tensor.ndim != 3 or tuple(tensor.shape[1:]) != expected:
                raise self._damaged(digest, "wrong shapes")
        return latents

    def _read(self, digest: str, *names: str) -> dict[str, torch.Tensor]:
        key = self._packs.get(digest, "")
        try:
            entry = self._header(key).get(digest)
            if entry is None or set(entry.tensors) != set(names):
                raise self._damaged(digest, "wrong contents")
            data = bytearray(read_entry(self._store, key, entry))
        except DamagedPackError as error:
            raise self._damaged(digest, error.message) from error
        return {name: _tensor(data, place) for name, place in entry.tensors.items()}

    def _damaged(self, digest: str, problem: str) -> DamagedFileError:
        key = self._packs.get(digest, "")
        return DamagedFileError("the cache pack", key, problem, _REMEDY)


def read_index(store: Store, key: str, config: PipelineConfig, dataset: str) -> CacheIndex:
    """Read a job's cache index.

    Args:
        store: The store of the index.
        key: The index's key.
        config: The run's config.
        dataset: The digest of the run's dataset.

    Raises:
        DamagedFileError: The file holds no index.
        StaleIndexError: The index belongs to another config or dataset.
    """
    try:
        index = CacheIndex.model_validate_json(store.get(key))
    except ValueError as error:
        raise DamagedFileError("the cache index", key, "no index", _REMEDY) from error
    settings = cache_settings(config)
    differs = sorted(name for name in settings if settings[name] != index.settings.get(name))
    if index.dataset != dataset:
        differs.insert(0, "dataset")
    if differs:
        raise StaleIndexError(key, differs)
    return index


def _tensor(data: bytearray, place: TensorPlace) -> torch.Tensor:
    """Return a tensor of an entry, whose checksum has been compared."""
    flat = torch.frombuffer(memoryview(data)[place.start : place.end], dtype=DTYPES[place.dtype])
    return flat.reshape(place.shape)
