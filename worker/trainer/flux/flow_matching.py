"""FLUX's noise levels, and the errors of flow matching.

Where possible, FluxPipeline's own functions are used: training then sees exactly what inference
sees. Rectified flow: Liu et al., 2022; the logit-normal draw of t: Esser et al., 2024.
"""

import math
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift

from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.data.batches import Draw
from worker.trainer.data.cache_entries import Text

# Static methods without type annotations.
_pack: Any = FluxPipeline._pack_latents
_unpack: Any = FluxPipeline._unpack_latents
_image_ids: Any = FluxPipeline._prepare_latent_image_ids


def level_draw(config: FluxLoraConfig) -> Draw:
    """Return the draw of noise levels, one a sample: a batch of 2 trains like two samples."""
    return Draw("uniform" if config.timestep_sampler == "uniform" else "normal", "sigma")


def sigmas(config: FluxLoraConfig, drawn: torch.Tensor, patches: int) -> torch.Tensor:
    """Return noise levels in (0, 1), one for each sample, (B,).

    Args:
        config: Names the sampler of noise levels.
        drawn: The numbers of ``level_draw``, (B,).
        patches: The number of the transformer's image tokens, for ``resolution_shift``.
    """
    if config.timestep_sampler == "uniform":
        return drawn
    t = torch.sigmoid(config.sigmoid_scale * drawn)  # (B,)
    shift = config.discrete_flow_shift
    if config.timestep_sampler == "resolution_shift":
        # FluxPipeline's own shift for images of this size.
        shift = math.exp(calculate_shift(patches))
    # The shift for higher resolutions (Esser et al., 2024, equation 23).
    return shift * t / (1 + (shift - 1) * t)  # (B,)


def min_snr_weight(sigma: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return Min-SNR's weight in its v-prediction form (Hang et al., 2023), (B,).

    Args:
        sigma: Noise levels, (B,).
        gamma: The largest signal-to-noise ratio that counts.
    """
    snr = ((1 - sigma) / sigma) ** 2  # (B,)
    # At sigma 0 the ratio is infinite over infinite; its limit is 0.
    return torch.where(sigma > 0, torch.clamp(snr, max=gamma) / (snr + 1), 0.0)


def flow_matching_errors(
    transformer: FluxTransformer2DModel,
    z: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    text: Text,
    guidance_scale: float,
) -> torch.Tensor:
    """Return the squared errors of the predicted velocity, (B, 16, h, w) float32.

    Args:
        transformer: FLUX's transformer, with or without LoRA.
        z: Clean latents, (B, 16, h, w).
        noise: Standard normal draws, (B, 16, h, w).
        sigma: Noise levels, (B,).
        text: T5's states, (B, tokens, 4096), and CLIP's pooled state, (B, 768).
        guidance_scale: The guidance, for transformers that take one.
    """
    batch, channels, height, width = z.shape
    level = sigma.view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    x = (1 - level) * z + level * noise  # (B, 16, h, w)
    packed = _pack(x, batch, channels, height, width)  # (B, hw/4, 64)
    image_ids = _image_ids(batch, height // 2, width // 2, z.device, torch.float32)  # (hw/4, 3)
    text_ids = torch.zeros(text.prompt_embeds.shape[1], 3, device=z.device)  # (tokens, 3)
    guidance = None
    if transformer.config["guidance_embeds"]:
        guidance = torch.full((batch,), guidance_scale, device=z.device)  # (B,)
    weight_dtype = transformer.x_embedder.weight.dtype
    predicted = transformer(
        hidden_states=packed.to(weight_dtype),
        encoder_hidden_states=text.prompt_embeds.to(weight_dtype),
        pooled_projections=text.pooled.to(weight_dtype),
        timestep=sigma,
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=guidance,
        return_dict=False,
    )[0]  # (B, hw/4, 64)
    velocity = _unpack(predicted.float(), 8 * height, 8 * width, 8)  # (B, 16, h, w)
    errors: torch.Tensor = (velocity - (noise - z).float()).pow(2)
    return errors
