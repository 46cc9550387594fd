"""SDXL's validation images: latents sampled by StableDiffusionXLPipeline."""

from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)

from tasks.base_models.noise_schedule import noise_schedule
from tasks.buckets import Size
from tasks.jobs.sdxl import SdxlConfig
from worker.trainer.base_model import load_scheduler
from worker.trainer.data.cache_entries import Text
from worker.trainer.sdxl.models import SdxlModels

# StableDiffusionXLPipeline's own guidance; its 50 steps show little more than 30.
STEPS, GUIDANCE = 30, 5.0


class SdxlSampler:
    """StableDiffusionXLPipeline over the UNet that is trained.

    Args:
        config: Names the base model, for its scheduler.
        models: The run's models.

    Raises:
        BaseModelFilesError: The base model has no usable scheduler.
    """

    def __init__(self, config: SdxlConfig, models: SdxlModels) -> None:
        unet = models.denoiser
        self.channels = unet.config["in_channels"]
        self.negative_prompts = config.negative_validation_prompts
        self._dtype = unet.dtype
        # The signature takes no None for a component; the code does.
        new_pipeline: Any = StableDiffusionXLPipeline
        self._pipeline: Any = new_pipeline(
            vae=None,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=load_scheduler(config, **noise_schedule(config).scheduler_values),
            add_watermarker=False,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def sample(
        self, noise: torch.Tensor, text: Text, negative: Text | None, size: Size
    ) -> torch.Tensor:
        """Return latents (1, 4, h, w) from noise of that shape; no negative text is all zeros."""
        if negative is None:
            negative = Text(torch.zeros_like(text.prompt_embeds), torch.zeros_like(text.pooled))
        latents: torch.Tensor = self._pipeline(
            height=size.height,
            width=size.width,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=noise.to(self._dtype),
            prompt_embeds=text.prompt_embeds.to(noise.device, self._dtype),
            pooled_prompt_embeds=text.pooled.to(noise.device, self._dtype),
            negative_prompt_embeds=negative.prompt_embeds.to(noise.device, self._dtype),
            negative_pooled_prompt_embeds=negative.pooled.to(noise.device, self._dtype),
            output_type="latent",
            return_dict=False,
        )[0]
        return latents
