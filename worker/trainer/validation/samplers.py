"""How each family makes an image's latents of noise and text, by diffusers' own pipelines."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from tasks.base_models.files import base_model_folder, json_object
from tasks.buckets import Size
from tasks.errors import BaseModelFilesError
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.data.cache_entries import VAE_FACTOR, Text

# FluxPipeline's own defaults: what FLUX.1-dev is shown with everywhere. The guidance_scale option
# is that of training, where it is 1.
FLUX_STEPS, FLUX_GUIDANCE = 28, 3.5
# StableDiffusionXLPipeline's own guidance; its 50 steps show little that 30 do not.
SDXL_STEPS, SDXL_GUIDANCE = 30, 5.0

_pack: Any = FluxPipeline._pack_latents
_unpack: Any = FluxPipeline._unpack_latents


class FluxSampler:
    """FluxPipeline over a live transformer.

    Args:
        config: Names the base model, for its scheduler.
        transformer: Sampled from as it stands.
    """

    def __init__(self, config: PipelineConfig, transformer: FluxTransformer2DModel) -> None:
        self.channels = transformer.config["in_channels"] // 4
        self._dtype = transformer.x_embedder.weight.dtype
        # Its signature has no place for a pipeline of a part of the components; its code has.
        new_pipeline: Any = FluxPipeline
        self._pipeline: Any = new_pipeline(
            scheduler=_scheduler(config),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def sample(
        self, noise: torch.Tensor, text: Text, negative: Text | None, size: Size
    ) -> torch.Tensor:
        """Latents (1, 16, h, w) from noise of that shape; FLUX takes no negative text."""
        height, width = size.height // VAE_FACTOR, size.width // VAE_FACTOR
        packed = self._pipeline(
            height=size.height,
            width=size.width,
            num_inference_steps=FLUX_STEPS,
            guidance_scale=FLUX_GUIDANCE,
            latents=_pack(noise, 1, self.channels, height, width).to(self._dtype),  # (1, hw/4, 64)
            prompt_embeds=text.prompt_embeds.to(noise.device, self._dtype),
            pooled_prompt_embeds=text.pooled.to(noise.device, self._dtype),
            output_type="latent",
            return_dict=False,
        )[0]
        latents: torch.Tensor = _unpack(packed, size.height, size.width, VAE_FACTOR)
        return latents


class SdxlSampler:
    """StableDiffusionXLPipeline over a live UNet.

    Args:
        config: Names the base model, for its scheduler.
        unet: Sampled from as it stands.
    """

    def __init__(self, config: PipelineConfig, unet: UNet2DConditionModel) -> None:
        self.channels = unet.config["in_channels"]
        self._dtype = unet.dtype
        new_pipeline: Any = StableDiffusionXLPipeline
        self._pipeline: Any = new_pipeline(
            vae=None,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=_scheduler(config),
            add_watermarker=False,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def sample(
        self, noise: torch.Tensor, text: Text, negative: Text | None, size: Size
    ) -> torch.Tensor:
        """Latents (1, 4, h, w) from noise of that shape; no negative text is all zeros."""
        if negative is None:
            negative = Text(torch.zeros_like(text.prompt_embeds), torch.zeros_like(text.pooled))
        latents: torch.Tensor = self._pipeline(
            height=size.height,
            width=size.width,
            num_inference_steps=SDXL_STEPS,
            guidance_scale=SDXL_GUIDANCE,
            latents=noise.to(self._dtype),
            prompt_embeds=text.prompt_embeds.to(noise.device, self._dtype),
            pooled_prompt_embeds=text.pooled.to(noise.device, self._dtype),
            negative_prompt_embeds=negative.prompt_embeds.to(noise.device, self._dtype),
            negative_pooled_prompt_embeds=negative.pooled.to(noise.device, self._dtype),
            output_type="latent",
            return_dict=False,
        )[0]
        return latents


def _scheduler(config: PipelineConfig) -> Any:
    """The base model's own sampler, told what the config says of the model's prediction."""
    folder: Path = base_model_folder(config, ("scheduler",))
    values = json_object(folder, "scheduler/scheduler_config.json")
    name = str(values.get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise BaseModelFilesError(config.model, f"diffusers has no scheduler {name}")
    prediction = getattr(config, "prediction_type", None)
    new: Any = kind
    return new.from_config(values, **({"prediction_type": prediction} if prediction else {}))
