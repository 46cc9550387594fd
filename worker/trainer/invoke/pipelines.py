"""The library's pipelines: the names in their modules, and what our engine puts in their place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from worker.trainer.invoke.flux import FluxForward
from worker.trainer.invoke.lora import (
    flux_lora_targets,
    write_flux_lora_file,
    write_sdxl_lora_file,
)
from worker.trainer.invoke.sdxl import SdxlForward, library_values


@dataclass(frozen=True)
class Lora:
    """How the LoRAs of a pipeline are made.

    Attributes:
        writers: The library's functions that write a LoRA's file.
        write: Writes the file as engine ``diffusers`` does.
        targets: Returns regular expressions of the layers with a LoRA, by model.
    """

    writers: tuple[str, ...]
    write: Callable[..., None]
    targets: Callable[[Any], dict[str, str]] = lambda config: {}


@dataclass(frozen=True)
class Pipeline:
    """The names in a pipeline's module, and our parts for its training type.

    Attributes:
        module: The module's name.
        load: Loads the models: tokenizers, scheduler, text encoders, VAE and denoiser.
        roles: The names of the denoiser and of the text encoders in the names of weights.
        data_loader: Makes the batches.
        save: Saves a checkpoint and calls the callbacks.
        validate: Makes validation images and calls the callbacks.
        encodes: The functions that fill the library's own caches.
        forward: Computes the loss of a batch.
        values: Returns values of the library's config that depend on the base model.
        lora: How LoRAs are made; None for other types.
    """

    module: str
    load: str
    roles: tuple[str, ...]
    data_loader: str
    save: str
    validate: str
    encodes: tuple[str, ...]
    forward: type[FluxForward] | type[SdxlForward]
    values: Callable[[Any], dict[str, Any]] = lambda config: {}
    lora: Lora | None = None


_SDXL = "invoke_training.pipelines.stable_diffusion_xl"
_SDXL_ROLES = ("unet", "text_encoder", "text_encoder_2")
_CACHES = ("cache_text_encoder_outputs", "cache_vae_outputs")
PIPELINES = {
    "FLUX_LORA": Pipeline(
        "invoke_training.pipelines.flux.lora.train",
        "load_models_flux",
        ("transformer", "text_encoder"),
        "_build_data_loader",
        "_save_flux_lora_checkpoint",
        "generate_validation_images_flux",
        _CACHES,
        FluxForward,
        lora=Lora(
            ("save_flux_kohya_checkpoint", "save_flux_peft_checkpoint"),
            write_flux_lora_file,
            flux_lora_targets,
        ),
    ),
    "SDXL_LORA": Pipeline(
        f"{_SDXL}.lora.train",
        "load_models_sdxl",
        _SDXL_ROLES,
        "_build_data_loader",
        "_save_sdxl_lora_checkpoint",
        "generate_validation_images_sdxl",
        _CACHES,
        SdxlForward,
        library_values,
        Lora(("save_sdxl_kohya_checkpoint", "save_sdxl_peft_checkpoint"), write_sdxl_lora_file),
    ),
    "SDXL_TEXTUAL_INVERSION": Pipeline(
        f"{_SDXL}.textual_inversion.train",
        "load_models_sdxl",
        _SDXL_ROLES,
        "build_textual_inversion_sd_dataloader",
        "_save_ti_embeddings",
        "generate_validation_images_sdxl",
        ("cache_vae_outputs",),
        SdxlForward,
        library_values,
    ),
    "SDXL_FINETUNE": Pipeline(
        f"{_SDXL}.finetune.train",
        "load_models_sdxl",
        _SDXL_ROLES,
        "_build_data_loader",
        "_save_sdxl_checkpoint",
        "generate_validation_images_sdxl",
        _CACHES,
        SdxlForward,
        library_values,
    ),
}
"""The pipeline of each training type."""


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Replace attributes of a module or class until the context ends.

    Raises:
        AttributeError: It has no such attribute: the library has another version.
    """
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
