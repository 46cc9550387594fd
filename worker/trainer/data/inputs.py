"""The inputs of a recipe's loss: text and latents of a batch."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from worker.trainer.data.batches import Batch, Draw
from worker.trainer.data.cache_entries import Latents, Text


class TextEncoders(Protocol):
    """The text encoders of a base model, with their tokenizers."""

    @property
    def encoders(self) -> dict[str, torch.nn.Module]:
        """The encoders by the names of their folders and weights."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move the encoders."""
        ...

    def encode(self, captions: Sequence[str]) -> Text:
        """Encode captions: (B, tokens, width) and (B, width)."""
        ...


class VaeScaling:
    """The shift and scale between the VAE's latents and the denoiser's.

    Args:
        config: The VAE's config.
    """

    def __init__(self, config: dict[str, object]) -> None:
        self.shift_factor = float(str(config.get("shift_factor") or 0.0))
        self.scaling_factor = float(str(config["scaling_factor"]))


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels: torch.Tensor) -> Latents:
    """Return the VAE's distribution, (B, C, h, w), of images (B, 3, H, W) in [-1, 1]."""
    # Not vae.dtype, which walks through all modules at each step.
    dtype = vae.encoder.conv_in.weight.dtype
    distribution = vae.encode(pixels.to(dtype)).latent_dist  # (B, C, h, w)
    return Latents(distribution.mean.float(), distribution.logvar.float())


def sample_latents(latents: Latents, eps: torch.Tensor, scaling: VaeScaling) -> torch.Tensor:
    """Sample the VAE's distribution (Kingma & Welling, 2013), in the denoiser's scale.

    Args:
        latents: Mean and logvar, (B, C, h, w).
        eps: Standard normal draws, (B, C, h, w).
        scaling: The VAE's shift and scale.

    Returns:
        Latents, (B, C, h, w).
    """
    z = latents.mean + torch.exp(0.5 * latents.logvar) * eps  # (B, C, h, w)
    return (z - scaling.shift_factor) * scaling.scaling_factor


def latent_draws(channels: int) -> tuple[Draw, Draw]:
    """Return the draws that make noisy latents of C channels: the VAE's sample and the noise."""
    return Draw("normal", "vae", channels), Draw("normal", "noise", channels)


class Inputs:
    """Makes text and latents of batches, from the cache or by the encoders.

    Args:
        device: The device of the results.
        vae_scaling: The shift and scale of the latents.
        vae: Encodes images at each step; None if latents are cached.
        text: Encodes captions at each step; None if text outputs are cached.
    """

    def __init__(
        self,
        device: torch.device,
        vae_scaling: VaeScaling,
        vae: AutoencoderKL | None,
        text: TextEncoders | None,
    ) -> None:
        self._device = device
        self._vae_scaling = vae_scaling
        self._vae = vae
        self._text = text

    def frozen_text(self, batch: Batch) -> Text:
        """Return the batch's text, from frozen encoders: their own precision, no gradient."""
        if batch.prompt_embeds is not None and batch.pooled is not None:
            return Text(batch.prompt_embeds, batch.pooled)
        if self._text is None:
            raise AssertionError("text is not cached, and there are no encoders")
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            return self._text.encode(batch.captions)

    def latents(self, batch: Batch) -> torch.Tensor:
        """Sample the VAE's distribution of each image, (B, C, h, w) float32."""
        with torch.autocast(self._device.type, enabled=False):
            return sample_latents(self._distribution(batch), batch.draws["vae"], self._vae_scaling)

    def _distribution(self, batch: Batch) -> Latents:
        if batch.latent_mean is not None and batch.latent_logvar is not None:
            return Latents(batch.latent_mean, batch.latent_logvar)
        if self._vae is None or batch.pixels is None:
            raise AssertionError("latents are not cached, and there are no pixels or no VAE")
        # One image at a time: the VAE's activations of one take more memory than a batch's inputs.
        parts = [encode_pixels(self._vae, image[None]) for image in batch.pixels]
        return Latents(
            torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts])
        )


def sample_losses(errors: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean of each sample's squared errors, times its weight.

    Args:
        errors: (B, C, h, w) float32.
        batch: Its masks, if the config uses them, weight the errors.

    Returns:
        (B,) float32.
    """
    if batch.masks is not None:
        errors = errors * batch.masks  # (B, C, h, w) * (B, 1, h, w)
    return errors.mean(dim=(1, 2, 3)) * batch.weights
