"""The frozen models of a run, by the family of its config."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig, SdxlFinetuneConfig
from worker.trainer.base_model import vae_config
from worker.trainer.encoders import load_text_encoders, load_vae
from worker.trainer.flux import FluxText
from worker.trainer.inputs import TextEncoders, VaeNumbers, encode_pixels
from worker.trainer.sdxl import SdxlText
from worker.trainer.sdxl_models import load_noise_scheduler, load_sdxl_text_encoders, load_unet
from worker.trainer.transformer import load_transformer

__all__ = ["FluxModels", "SdxlModels", "encode_pixels", "load_models", "load_text", "load_vae"]


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


def load_text(config: PipelineConfig, device: torch.device) -> TextEncoders:
    """The text encoders, frozen."""
    if isinstance(config, FluxLoraConfig):
        return _flux_text(config, device)
    if isinstance(config, SdxlConfig):
        return SdxlText(load_sdxl_text_encoders(config, device), device)
    raise TypeError(f"no models for {config.type}")


def load_models(config: PipelineConfig, device: torch.device) -> FluxModels | SdxlModels:
    """All that a run of this config needs.

    Raises:
        RefusedError: The base model's files cannot be used.
    """
    vae = None if config.cache_vae_outputs else load_vae(config, device)
    numbers = VaeNumbers(vae_config(config))
    if isinstance(config, FluxLoraConfig):
        text = None if config.caches_text else _flux_text(config, device)
        return FluxModels(load_transformer(config, device), numbers, vae, text)
    if isinstance(config, SdxlConfig):
        # A finetune trains the UNet's own weights, in float32.
        trains = isinstance(config, SdxlFinetuneConfig)
        dtype = torch.float32 if trains else getattr(torch, config.weight_dtype)
        encoders = None if config.caches_text else load_sdxl_text_encoders(config, device)
        return SdxlModels(
            load_unet(config, device, dtype),
            load_noise_scheduler(config),
            numbers,
            vae,
            None if encoders is None else SdxlText(encoders, device),
        )
    raise TypeError(f"no models for {config.type}")


def _flux_text(config: FluxLoraConfig, device: torch.device) -> FluxText:
    pipeline = load_text_encoders(config, device)
    return FluxText(pipeline, config.t5_tokenizer_max_length, device)
