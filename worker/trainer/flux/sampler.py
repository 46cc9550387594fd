"""FLUX's validation images: latents sampled by FluxPipeline."""

from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from tasks.buckets import Size
from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.base_model import load_scheduler
from worker.trainer.data.cache_entries import VAE_FACTOR, Text
from worker.trainer.flux.models import FluxModels

# FluxPipeline's own defaults, with which FLUX.1-dev is usually shown. The option guidance_scale is
# the guidance of training, which is 1.
STEPS, GUIDANCE = 28, 3.5

# Static methods without type annotations.
_pack: Any = FluxPipeline._pack_latents
_unpack: Any = FluxPipeline._unpack_latents


class FluxSampler:
    """FluxPipeline over the transformer that is trained.

    Args:
        config: Names the base model, for its scheduler.
        models: The run's models.

    Raises:
        BaseModelFilesError: The base model has no usable scheduler.
    """

    negative_prompts = None

    def __init__(self, config: FluxLoraConfig, models: FluxModels) -> None:
        transformer = models.denoiser
        self.channels = transformer.config["in_channels"] // 4
        self._dtype = transformer.x_embedder.weight.dtype
        # The signature takes no None for a component; the code does.
        new_pipeline: Any = FluxPipeline
        self._pipeline: Any = new_pipeline(
            scheduler=load_scheduler(config),
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
        """Return latents (1, 16, h, w) from noise of that shape; FLUX takes no negative text."""
        height, width = size.height // VAE_FACTOR, size.width // VAE_FACTOR
        latents = _pack(noise, 1, self.channels, height, width)  # (1, hw/4, 64)
        latents = self._pipeline(
            height=size.height,
            width=size.width,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=latents.to(self._dtype),
            prompt_embeds=text.prompt_embeds.to(noise.device, self._dtype),
            pooled_prompt_embeds=text.pooled.to(noise.device, self._dtype),
            output_type="latent",
            return_dict=False,
        )[0]  # (1, hw/4, 64)
        unpacked: torch.Tensor = _unpack(latents, size.height, size.width, VAE_FACTOR)
        return unpacked  # (1, 16, h, w)
