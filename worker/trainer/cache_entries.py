"""Cache entries: what decides an entry's key, and how it is written and read.

A key is the SHA-256 of everything the entry depends on. An edited image, another encoder or another
length gives another key, so that no entry is ever stale and all jobs of a fleet can share them.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tasks.buckets import Size
from tasks.jobs.base import StrictModel
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.store import Store, latent_entry_key, text_entry_key
from worker.trainer.errors import DamagedFileError, StaleIndexError
from worker.trainer.safetensors_file import safetensors_bytes

# Raise it when the code that makes entries changes what is in them.
CODE_VERSION = 1

# FLUX's VAE makes one latent of 8x8 pixels.
VAE_FACTOR = 8


class SampleEntries(StrictModel):
    """The cache entries of one sample; null where its kind is not cached."""

    text: str | None
    latents: str | None
    flipped_latents: str | None
    """Where the config mirrors samples."""


class CacheIndex(StrictModel):
    """Which cache entries belong to which samples of a job."""

    data_set: str
    """The data set's digest."""
    settings: dict[str, object]
    """The options that entries depend on."""
    samples: tuple[SampleEntries, ...]
    """In the data set's order."""
    blank_text: str | None
    """The blank caption's entry."""


@dataclass(frozen=True)
class Text:
    """What the text encoders make of one caption.

    Attributes:
        prompt_embeds: T5's states, (tokens, 4096) in FLUX.
        pooled: CLIP's pooled state, (768,) in FLUX.
    """

    prompt_embeds: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Latents:
    """The distribution that the VAE makes of one image.

    Attributes:
        mean: (16, h, w) float32.
        logvar: (16, h, w) float32.
    """

    mean: torch.Tensor
    logvar: torch.Tensor


def cache_settings(config: FluxLoraConfig) -> dict[str, object]:
    """The options that cache entries depend on, as plain JSON."""
    loader = config.data_loader
    return {
        "model": config.model,
        "text_encoder_1_path": config.text_encoder_1_path,
        "text_encoder_2_path": config.text_encoder_2_path,
        "weight_dtype": config.weight_dtype,
        "clip_tokenizer_max_length": config.clip_tokenizer_max_length,
        "t5_tokenizer_max_length": config.t5_tokenizer_max_length,
        "caption_prefix": loader.caption_prefix,
        "sizes": [list(size) for size in loader.sizes()],
        "random_flip": loader.random_flip,
        "cache_text_encoder_outputs": config.cache_text_encoder_outputs,
        "cache_vae_outputs": config.cache_vae_outputs,
        "code_version": CODE_VERSION,
    }


def text_key(caption: str, config: FluxLoraConfig, encoders_digest: str) -> str:
    """The store key of a caption's entry."""
    digest = _digest(
        "text",
        caption,
        config.clip_tokenizer_max_length,
        config.t5_tokenizer_max_length,
        encoders_digest,
        config.weight_dtype,
    )
    return text_entry_key(digest)


def latents_key(image: str, size: Size, flipped: bool, vae_digest: str) -> str:
    """The store key of an image's entry; the crop is always the centre."""
    digest = _digest("latents", image, list(size), "centre", flipped, vae_digest, "float32")
    return latent_entry_key(digest)


def text_bytes(text: Text) -> bytes:
    """A text entry as it is stored."""
    return safetensors_bytes({"prompt_embeds": text.prompt_embeds, "pooled": text.pooled})


def latents_bytes(latents: Latents) -> bytes:
    """A latents entry as it is stored."""
    return safetensors_bytes({"mean": latents.mean, "logvar": latents.logvar})


def read_text(store: Store, key: str, config: FluxLoraConfig) -> Text:
    """A text entry.

    Raises:
        DamagedFileError: It is not what was written.
    """
    tensors = _read(store, key, "prompt_embeds", "pooled")
    text = Text(**tensors)
    if text.prompt_embeds.ndim != 2 or text.pooled.ndim != 1:
        raise _damaged(key, "wrong shapes")
    if len(text.prompt_embeds) != config.t5_tokenizer_max_length:
        raise _damaged(key, "wrong number of tokens")
    return text


def read_latents(store: Store, key: str, size: Size) -> Latents:
    """A latents entry.

    Raises:
        DamagedFileError: It is not what was written.
    """
    latents = Latents(**_read(store, key, "mean", "logvar"))
    expected = (size.height // VAE_FACTOR, size.width // VAE_FACTOR)
    for tensor in (latents.mean, latents.logvar):
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != expected:
            raise _damaged(key, "wrong shapes")
    return latents


def read_index(store: Store, key: str, config: FluxLoraConfig, data_set: str) -> CacheIndex:
    """A job's cache index.

    Raises:
        DamagedFileError: It is no index.
        StaleIndexError: It is of another config or data set.
    """
    try:
        index = CacheIndex.model_validate_json(store.get(key))
    except ValueError as error:
        raise DamagedFileError("the cache index", key, "no index", _REMEDY) from error
    settings = cache_settings(config)
    differs = sorted(name for name in settings if settings[name] != index.settings.get(name))
    if index.data_set != data_set:
        differs.insert(0, "data set")
    if differs:
        raise StaleIndexError(key, differs)
    return index


_REMEDY = "run the cache stage again"


def _damaged(key: str, problem: str) -> DamagedFileError:
    return DamagedFileError("the cache entry", key, problem, _REMEDY)


def _read(store: Store, key: str, *names: str) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load(store.get(key))
    except (SafetensorError, ValueError) as error:
        raise _damaged(key, str(error)) from error
    if set(tensors) != set(names):
        raise _damaged(key, "wrong contents")
    for tensor in tensors.values():
        if not tensor.isfinite().all():
            raise _damaged(key, "not finite")
    return tensors


def _digest(*parts: object) -> str:
    text = json.dumps([CODE_VERSION, *parts], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
