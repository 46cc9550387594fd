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

from tasks.data.buckets import Size
from tasks.jobs.base import StrictModel
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.store import Store, latent_entry_key, text_entry_key
from worker.trainer.errors import DamagedFileError, StaleIndexError
from worker.trainer.safetensors_file import safetensors_bytes

# Raise it when the code that makes entries changes what is in them.
CODE_VERSION = 1

# FLUX's and SDXL's VAEs make one latent of 8x8 pixels.
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
    prompt_texts: tuple[str, ...] = ()
    """The entries of validation_prompts, in their order; none where text is not cached."""
    negative_texts: tuple[str, ...] = ()
    """Those of negative_validation_prompts."""


@dataclass(frozen=True)
class Text:
    """What the text encoders make of one caption.

    Attributes:
        prompt_embeds: Token states: T5's (tokens, 4096) in FLUX, those of both encoders side by
            side (77, 2048) in SDXL.
        pooled: The pooled state: CLIP's (768,) in FLUX, the second encoder's (1280,) in SDXL.
    """

    prompt_embeds: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Latents:
    """The distribution that the VAE makes of one image.

    Attributes:
        mean: (C, h, w) float32; C is 16 in FLUX, 4 in SDXL.
        logvar: (C, h, w) float32.
    """

    mean: torch.Tensor
    logvar: torch.Tensor


# Tokens that SDXL's text encoders see.
_SDXL_TOKENS = 77


def text_tokens(config: PipelineConfig) -> int:
    """How many tokens a text entry holds."""
    return config.t5_tokenizer_max_length if isinstance(config, FluxLoraConfig) else _SDXL_TOKENS


def cache_settings(config: PipelineConfig) -> dict[str, object]:
    """The options that cache entries depend on, as plain JSON."""
    loader = config.loader
    values = config.model_dump(mode="json", include=set(_SETTINGS))
    loader_values = loader.model_dump(mode="json", include=set(_LOADER_SETTINGS))
    return {
        **values,
        **loader_values,
        "sizes": [list(size) for size in loader.sizes()],
        "code_version": CODE_VERSION,
    }


_SETTINGS = (
    "type",
    "model",
    "single_file_config",
    "hf_variant",
    "vae_model",
    "base_embeddings",
    "text_encoder_1_path",
    "text_encoder_2_path",
    "weight_dtype",
    "clip_tokenizer_max_length",
    "t5_tokenizer_max_length",
    "validation_prompts",
    "negative_validation_prompts",
    "cache_text_encoder_outputs",
    "cache_vae_outputs",
)
_LOADER_SETTINGS = ("caption_prefix", "instance_caption", "class_caption", "random_flip")


def text_key(caption: str, config: PipelineConfig, encoders_digest: str) -> str:
    """The store key of a caption's entry."""
    limits = [
        getattr(config, name, None)
        for name in ("clip_tokenizer_max_length", "t5_tokenizer_max_length")
    ]
    return text_entry_key(_digest("text", caption, *limits, encoders_digest, config.weight_dtype))


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


def read_text(store: Store, key: str, tokens: int) -> Text:
    """A text entry of so many tokens.

    Raises:
        DamagedFileError: It is not what was written.
    """
    text = Text(**_read(store, key, "prompt_embeds", "pooled"))
    if text.prompt_embeds.ndim != 2 or text.pooled.ndim != 1:
        raise _damaged(key, "wrong shapes")
    if len(text.prompt_embeds) != tokens:
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


def read_index(store: Store, key: str, config: PipelineConfig, data_set: str) -> CacheIndex:
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
