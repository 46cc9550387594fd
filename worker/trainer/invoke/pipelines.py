"""The library's pipelines: where each is, and what its module calls the seams."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pipeline:
    """The names in a pipeline's module.

    Attributes:
        module: The module's own.
        load: Loads the models: tokenizers, scheduler, text encoders, VAE and what is trained.
        roles: What the last of these, and the text encoders, are called in weights' names.
        data_loader: Makes the batches.
        save: Saves a checkpoint and calls the callbacks.
        validate: Makes validation images and calls the callbacks.
        encodes: What fills the library's own caches.
        writers: What writes a LoRA's file.
    """

    module: str
    load: str
    roles: tuple[str, ...]
    data_loader: str
    save: str
    validate: str
    encodes: tuple[str, ...]
    writers: tuple[str, ...] = ()


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
        ("save_flux_kohya_checkpoint", "save_flux_peft_checkpoint"),
    ),
    "SDXL_LORA": Pipeline(
        f"{_SDXL}.lora.train",
        "load_models_sdxl",
        _SDXL_ROLES,
        "_build_data_loader",
        "_save_sdxl_lora_checkpoint",
        "generate_validation_images_sdxl",
        _CACHES,
        ("save_sdxl_kohya_checkpoint", "save_sdxl_peft_checkpoint"),
    ),
    "SDXL_TEXTUAL_INVERSION": Pipeline(
        f"{_SDXL}.textual_inversion.train",
        "load_models_sdxl",
        _SDXL_ROLES,
        "build_textual_inversion_sd_dataloader",
        "_save_ti_embeddings",
        "generate_validation_images_sdxl",
        ("cache_vae_outputs",),
    ),
    "SDXL_FINETUNE": Pipeline(
        f"{_SDXL}.finetune.train",
        "load_models_sdxl",
        _SDXL_ROLES,
        "_build_data_loader",
        "_save_sdxl_checkpoint",
        "generate_validation_images_sdxl",
        _CACHES,
    ),
}


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Other values stand under these names of a module or class, until the context ends.

    Raises:
        AttributeError: It has no such name: another version of the library.
    """
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
