"""Parts of a base model that all families share: VAE, scheduler, checks of tokenizers and files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError

from tasks.base_models.files import (
    base_model_folder,
    existing_file,
    fingerprint,
    json_object,
    part_config,
    vae_folder,
    weights_file,
    weights_files,
)
from tasks.base_models.parts import StoredTensor, family_of, part_weights
from tasks.base_models.safetensors_header import read_header, read_headers
from tasks.errors import BaseModelFilesError
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.errors import VocabularyError
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.weights import empty_model, load_text_encoder, load_weights

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
# A tokenizer may hold fewer tokens than its encoder's table, which is padded (T5: 32100 of 32128),
# but never less than this share of them.
_MIN_SHARE = 0.5


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Raise the libraries' errors for a missing or unreadable file as ours.

    Args:
        source: The model or file that is read, for the message.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelFilesError(source, str(error).partition("\n")[0]) from error


def needed_specs(
    config: PipelineConfig,
    device: torch.device,
    denoiser: ModelSpec,
    text_spec: Callable[[], ModelSpec],
) -> dict[str, ModelSpec]:
    """Return the models that training needs by part: without those whose outputs are cached.

    Raises:
        BaseModelFilesError: A file is missing.
    """
    specs = {"denoiser": denoiser}
    if not config.cache_vae_outputs:
        specs["vae"] = _vae_spec(config, device)
    if not config.caches_text:
        specs["text"] = text_spec()
    return specs


def take_vae(config: PipelineConfig, device: torch.device, cache: ModelCache) -> AutoencoderKL:
    """Return the VAE, frozen, as the only model on the device."""
    vae: AutoencoderKL = cache.take(device, {"vae": _vae_spec(config, device)})["vae"]
    return vae


def stored_weights(
    config: PipelineConfig, part: str
) -> tuple[dict[str, object], dict[str, StoredTensor]]:
    """Return a part's ``config.json``, and where the job's files have its weights.

    Raises:
        BaseModelFilesError: A file is missing or unreadable, or holds something else.
    """
    family = family_of(config)
    is_vae = part == "vae"
    folder = vae_folder(config) if is_vae else base_model_folder(config, (part,)) / part
    described = part_config(folder.parent, folder.name)
    file = weights_file(config, family.parts[part].option)
    header = (
        read_headers(folder, weights_files(config, folder)) if file is None else read_header(file)
    )
    return described, part_weights(header, family, part, described)


def load_vae(config: PipelineConfig, device: torch.device) -> AutoencoderKL:
    """Load the VAE in float32: in half precision SDXL's overflows, and FLUX's loses detail.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    described, weights = stored_weights(config, "vae")
    with readable(config.vae_model or config.model):
        vae: AutoencoderKL = empty_model(AutoencoderKL, described)
        load_weights(vae, weights, torch.float32, device)
    return vae


def load_encoder(
    kind: Any, config: PipelineConfig, folder: Path, part: str, device: torch.device
) -> Any:
    """Load a text encoder, frozen, onto a device.

    Args:
        kind: Its class in transformers.
        config: Names the base model.
        folder: The folder with its config.
        part: Its name.
        device: The device.

    Raises:
        BaseModelFilesError: A file is missing or unreadable, or holds something else.
    """
    _, weights = stored_weights(config, part)
    dtype = getattr(torch, config.weight_dtype)
    encoder = load_text_encoder(
        kind, kind.config_class.from_pretrained(folder / part), weights, dtype, device
    )
    return encoder.eval().requires_grad_(False)


def load_scheduler(config: PipelineConfig, **overrides: object) -> Any:
    """Load the base model's own sampling scheduler.

    Args:
        config: Names the base model.
        overrides: Values that replace those of the scheduler's config.

    Raises:
        BaseModelFilesError: diffusers has no such scheduler.
    """
    folder = base_model_folder(config, ("scheduler",))
    values = json_object(folder, "scheduler/scheduler_config.json")
    name = str(values.get("_class_name"))
    kind: Any = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise BaseModelFilesError(config.model, f"diffusers has no scheduler {name}")
    from_config: Any = kind.from_config  # type: ignore[attr-defined]
    return from_config(values, **overrides)


def check_vocabulary(model: str, part: str, tokenizer: Any, encoder: Any) -> None:
    """Check that a tokenizer belongs to its text encoder.

    A tokenizer folder without vocabulary files loads silently, with its special tokens only.

    Raises:
        VocabularyError: It does not.
    """
    tokens, size = len(tokenizer), encoder.config.vocab_size
    if not size * _MIN_SHARE <= tokens <= size:
        raise VocabularyError(model, part, tokens, size)


def existing_files(*paths: str | None) -> list[str]:
    """Return the paths that are not None.

    Raises:
        BaseModelFilesError: A file does not exist.
    """
    return [str(existing_file(path)) for path in paths if path is not None]


def _vae_spec(config: PipelineConfig, device: torch.device) -> ModelSpec:
    file = weights_file(config, "vae_model")
    files = sorted(vae_folder(config).glob("*.safetensors")) if file is None else [file]
    return ModelSpec(
        fingerprint(config, (), list(map(str, files))), lambda: load_vae(config, device)
    )
