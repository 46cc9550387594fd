"""The VAEs of the miniature models, whose latents have zero mean and unit variance."""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from worker.miniature.images import draw_outline
from worker.trainer.miniature.training import REPORT_EVERY, SEED, Log, set_rate, take_step
from worker.trainer.tiny_models import new_vae

# Of latents as the encoder gives them: a deviation of 0.007, next to means that deviate by 3 or 8.
_LOG_VARIANCE = -10.0
_BATCH, _RATE, _SIDE = 16, 2e-3, 64
# Of the steps, those before the latents are scaled to zero mean and unit variance.
_BEFORE_SCALING = 0.7
_KL_WEIGHT = 1e-6


def miniature_vae(channels: int, scaling_factor: float, shift_factor: float | None) -> Any:
    """Make a VAE that reduces images to an eighth; latents are z = (raw - shift) * scaling.

    Args:
        channels: Channels of the latents.
        scaling_factor: Scale of the latents.
        shift_factor: Mean of the raw latents; None for 0.
    """
    return new_vae(
        block_out_channels=(24, 48, 64, 64),
        norm_num_groups=8,
        latent_channels=channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def train_vae(vae: Any, steps: int, log: Log) -> None:
    """Train the VAE on images of all shapes and of outlines without a name."""
    draws = random.Random(SEED)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_RATE, weight_decay=1e-4)
    for step in range(steps):
        if step == int(_BEFORE_SCALING * steps):
            scale_latents(vae, _shown(draws))
        set_rate(optimizer, _RATE, step, steps)
        x = _shown(draws)  # (B, 3, H, W)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        error = functional.mse_loss(y.float(), x)
        loss = error + functional.l1_loss(y.float(), x) + _KL_WEIGHT * posterior.kl().mean().float()
        take_step(optimizer, loss, vae)
        if step % REPORT_EVERY == 0 or step == steps - 1:
            log.note("vae", step, error.item())
    vae.train(False)
    scale_latents(vae, _shown(draws))
    narrow_latents(vae)


@torch.no_grad()
def scale_latents(vae: Any, x: torch.Tensor) -> None:
    """Give each channel of z zero mean and unit variance, by the layers around the latents."""
    channels, shift = vae.config.latent_channels, _shift(vae)
    raw = vae.encode(x).latent_dist.mean.float()  # (B, C, h, w)
    mean, factor = raw.mean((0, 2, 3)), raw.std((0, 2, 3)) * vae.config.scaling_factor  # (C,)
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    # new = (raw - mean) / factor + shift
    last.weight[:channels] /= factor.view(-1, 1, 1, 1)
    last.bias[:channels] = (last.bias[:channels] - mean) / factor + shift
    last.bias[channels:] -= 2 * factor.log()
    first.bias += (first.weight.sum((2, 3)) * (mean - shift * factor)).sum(1)
    first.weight *= factor.view(1, -1, 1, 1)


@torch.no_grad()
def narrow_latents(vae: Any) -> None:
    """Give latents next to no variance, as real ones have: the denoiser is trained on their means.

    Trainers draw latents from what the encoder gives. With what its training leaves, a deviation of
    a quarter of the means', they would train on noise that the denoiser has never seen.
    """
    last, channels = vae.encoder.conv_out, vae.config.latent_channels
    last.weight[channels:] = 0
    last.bias[channels:] = _LOG_VARIANCE


@torch.no_grad()
def encode(vae: Any, images: list[Image.Image]) -> torch.Tensor:
    """Return latents of images of one size, (B, C, h, w)."""
    with torch.autocast("cpu", torch.bfloat16):
        raw: torch.Tensor = vae.encode(_tensor(images)).latent_dist.mode()
    z: torch.Tensor = (raw.float() - _shift(vae)) * vae.config.scaling_factor
    return z


def _shift(vae: Any) -> float:
    return vae.config.shift_factor or 0.0


def _shown(draws: random.Random) -> torch.Tensor:
    """Return images for the VAE, (B, 3, 64, 64) in -1 to 1."""
    return _tensor([draw_outline((_SIDE, _SIDE), draws) for _ in range(_BATCH)])


def _tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return images of one size as (B, 3, H, W) in -1 to 1."""
    pixels = torch.from_numpy(np.stack([np.asarray(it) for it in images]))
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)
