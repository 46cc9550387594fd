"""FLUX's numbers: text, latents, noise levels and the flow-matching loss.

Where FluxPipeline has a function for it, that function is used, so that training sees exactly what
inference sees. Rectified flow: Liu et al., 2022; the logit-normal draw of t: Esser et al., 2024.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.cache_entries import Latents, Text

# Static functions without types of their own.
_pack: Any = FluxPipeline._pack_latents
_image_ids: Any = FluxPipeline._prepare_latent_image_ids


@torch.no_grad()
def encode_text(
    pipeline: FluxPipeline, captions: Sequence[str], t5_length: int, device: torch.device
) -> list[Text]:
    """What both encoders make of captions, as FluxPipeline does it, one entry each."""
    prompt_embeds, pooled, _ = pipeline.encode_prompt(
        prompt=list(captions), device=device, max_sequence_length=t5_length
    )  # (B, t5_length, 4096), (B, 768)
    return [Text(*pair) for pair in zip(prompt_embeds, pooled, strict=True)]


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels: torch.Tensor) -> Latents:
    """The VAE's distribution of images (B, 3, H, W) in [-1, 1]: mean and logvar (B, 16, h, w)."""
    distribution = vae.encode(pixels.to(vae.dtype)).latent_dist
    return Latents(distribution.mean.float(), distribution.logvar.float())


def sample_latents(latents: Latents, eps: torch.Tensor, vae: "VaeNumbers") -> torch.Tensor:
    """Latents drawn from the VAE's distribution, in the transformer's scale.

    Args:
        latents: Mean and logvar, (B, 16, h, w).
        eps: Standard normal, (B, 16, h, w).
        vae: The VAE's shift and scale.
    """
    z = latents.mean + torch.exp(0.5 * latents.logvar) * eps  # (B, 16, h, w)
    return (z - vae.shift_factor) * vae.scaling_factor


class VaeNumbers:
    """The shift and scale between the VAE's latents and the transformer's."""

    def __init__(self, config: dict[str, object]) -> None:
        self.shift_factor = float(str(config.get("shift_factor") or 0.0))
        self.scaling_factor = float(str(config["scaling_factor"]))


def sigmas(config: FluxLoraConfig, normal: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Noise levels in (0, 1), one for each sample.

    Args:
        config: Names the sampler.
        normal: Standard normal draws, (B,).
        uniform: Uniform draws, (B,).
    """
    if config.timestep_sampler == "uniform":
        return uniform
    t = torch.sigmoid(config.sigmoid_scale * normal)  # (B,)
    shift = config.discrete_flow_shift
    return shift * t / (1 + (shift - 1) * t)


def min_snr_weight(sigma: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR's weight in its v-prediction form (Hang et al., 2023), (B,)."""
    snr = ((1 - sigma) / sigma) ** 2
    # At sigma 0 the ratio is infinite over infinite, and its limit 0.
    return torch.where(sigma > 0, torch.clamp(snr, max=gamma) / (snr + 1), 0.0)


def flow_matching_loss(
    transformer: FluxTransformer2DModel,
    z: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    prompt_embeds: torch.Tensor,
    pooled: torch.Tensor,
    guidance_scale: float,
) -> torch.Tensor:
    """The mean squared error of the predicted velocity, for each sample, (B,).

    Args:
        transformer: FLUX's, with or without LoRA.
        z: Clean latents, (B, 16, h, w).
        noise: Of the same shape.
        sigma: Noise levels, (B,).
        prompt_embeds: T5's states, (B, tokens, 4096).
        pooled: CLIP's pooled state, (B, 768).
        guidance_scale: For transformers that take a guidance.
    """
    batch, channels, height, width = z.shape
    level = sigma.view(-1, 1, 1, 1)
    x = (1 - level) * z + level * noise  # (B, 16, h, w)
    packed = _pack(x, batch, channels, height, width)  # (B, hw/4, 64)
    image_ids = _image_ids(batch, height // 2, width // 2, z.device, torch.float32)  # (hw/4, 3)
    text_ids = torch.zeros(prompt_embeds.shape[1], 3, device=z.device)  # (tokens, 3)
    guidance = None
    if transformer.config["guidance_embeds"]:
        guidance = torch.full((batch,), guidance_scale, device=z.device)  # (B,)
    weight_dtype = transformer.x_embedder.weight.dtype
    predicted = transformer(
        hidden_states=packed.to(weight_dtype),
        encoder_hidden_states=prompt_embeds.to(weight_dtype),
        pooled_projections=pooled.to(weight_dtype),
        timestep=sigma,
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=guidance,
        return_dict=False,
    )[0]  # (B, hw/4, 64)
    target = _pack(noise - z, batch, channels, height, width)
    losses: torch.Tensor = (predicted.float() - target.float()).pow(2).mean(dim=(1, 2))  # (B,)
    return losses
