"""The frozen models of a run, by the family of its config; kept from earlier requests or loaded."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from tasks.base_models.files import existing_file, fingerprint, vae_config, vae_folder
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import (
    SdxlConfig,
    SdxlFinetuneConfig,
    SdxlLoraConfig,
    SdxlTextualInversionConfig,
)
from worker.trainer.data.inputs import TextEncoders, VaeNumbers
from worker.trainer.encoders import load_text_encoders, load_vae
from worker.trainer.flux.flow_matching import FluxText
from worker.trainer.flux.transformer import load_transformer
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.sdxl.denoising import SdxlText
from worker.trainer.sdxl.embeddings import add_embeddings
from worker.trainer.sdxl.models import load_noise_scheduler, load_sdxl_text_encoders, load_unet


@dataclass(frozen=True)
class FluxModels:
    """FLUX's models on the device; None for those whose outputs are cached."""

    transformer: FluxTransformer2DModel
    vae_numbers: VaeNumbers
    vae: AutoencoderKL | None
    text: FluxText | None

    @property
    def denoiser(self) -> FluxTransformer2DModel:
        """What is trained, or has something trained in it."""
        return self.transformer


@dataclass(frozen=True)
class SdxlModels:
    """SDXL's models on the device; None for those whose outputs are cached."""

    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    vae_numbers: VaeNumbers
    vae: AutoencoderKL | None
    text: SdxlText | None

    @property
    def denoiser(self) -> UNet2DConditionModel:
        """What is trained, or has something trained in it."""
        return self.unet


def take_text(config: PipelineConfig, device: torch.device, kept: ModelCache) -> TextEncoders:
    """The text encoders, frozen; nothing else is on the device."""
    encoders: TextEncoders = kept.take(device, {"text": _wanted_text(config, device)})["text"]
    return encoders


def take_vae(config: PipelineConfig, device: torch.device, kept: ModelCache) -> AutoencoderKL:
    """The VAE, frozen; nothing else is on the device."""
    vae: AutoencoderKL = kept.take(device, {"vae": _wanted_vae(config, device)})["vae"]
    return vae


def take_models(
    config: PipelineConfig, device: torch.device, kept: ModelCache
) -> FluxModels | SdxlModels:
    """All that training needs.

    Raises:
        RefusedError: The base model's files cannot be used.
    """
    # Small files first: what is wrong with them is told before any weights are loaded.
    numbers = VaeNumbers(vae_config(config))
    wanted = {"denoiser": _wanted_denoiser(config, device)}
    if not config.cache_vae_outputs:
        wanted["vae"] = _wanted_vae(config, device)
    if not config.caches_text:
        wanted["text"] = _wanted_text(config, device)
    if isinstance(config, FluxLoraConfig):
        found = kept.take(device, wanted)
        return FluxModels(found["denoiser"], numbers, found.get("vae"), found.get("text"))
    scheduler = load_noise_scheduler(_sdxl(config))
    found = kept.take(device, wanted)
    return SdxlModels(found["denoiser"], scheduler, numbers, found.get("vae"), found.get("text"))


def forget_changed(config: PipelineConfig, kept: ModelCache) -> None:
    """Drop the models that a run of this config leaves changed."""
    if isinstance(config, SdxlFinetuneConfig):
        kept.forget("denoiser")
    if isinstance(config, SdxlTextualInversionConfig):
        kept.forget("text")


def _wanted_denoiser(config: PipelineConfig, device: torch.device) -> ModelSpec:
    if isinstance(config, FluxLoraConfig):
        identity: Hashable = (
            config.transformer_path,
            config.weight_dtype,
            config.quantization,
            fingerprint(config, ("transformer",), _paths(config.transformer_path)),
        )
        movable = config.quantization is None
        return ModelSpec(identity, lambda: load_transformer(config, device), movable)
    sdxl = _sdxl(config)
    # A finetune trains the UNet's own weights, in float32.
    trains = isinstance(config, SdxlFinetuneConfig)
    dtype: torch.dtype = torch.float32 if trains else getattr(torch, config.weight_dtype)
    identity = (str(dtype), fingerprint(config, ("unet",), ()))
    return ModelSpec(identity, lambda: load_unet(sdxl, device, dtype))


def _wanted_text(config: PipelineConfig, device: torch.device) -> ModelSpec:
    def load() -> TextEncoders:
        if isinstance(config, FluxLoraConfig):
            pipeline = load_text_encoders(config, device)
            return FluxText(pipeline, config.t5_tokenizer_max_length, device)
        sdxl = _sdxl(config)
        text = SdxlText(load_sdxl_text_encoders(sdxl, device), device)
        if isinstance(sdxl, SdxlLoraConfig):
            add_embeddings(text, sdxl.base_embeddings)
        return text

    options = config.model_dump(include=set(_TEXT_OPTIONS))
    overrides = [options.get(name) for name in ("text_encoder_1_path", "text_encoder_2_path")]
    embeddings = list(options.get("base_embeddings", {}).values())
    files = fingerprint(config, ("text_encoder", "text_encoder_2"), _paths(*overrides, *embeddings))
    return ModelSpec((str(options), files), load)


def _wanted_vae(config: PipelineConfig, device: torch.device) -> ModelSpec:
    files = sorted(map(str, vae_folder(config).glob("*.safetensors")))
    return ModelSpec(fingerprint(config, (), files), lambda: load_vae(config, device))


_TEXT_OPTIONS = (
    "type",
    "weight_dtype",
    "text_encoder_1_path",
    "text_encoder_2_path",
    "clip_tokenizer_max_length",
    "t5_tokenizer_max_length",
    "base_embeddings",
)


def _paths(*paths: str | None) -> list[str]:
    """Those that are given, and there.

    Raises:
        BaseModelFilesError: One is not there.
    """
    return [str(existing_file(path)) for path in paths if path is not None]


def _sdxl(config: PipelineConfig) -> SdxlConfig:
    if not isinstance(config, SdxlConfig):
        raise TypeError(f"no models for {config.type}")
    return config
