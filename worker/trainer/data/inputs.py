"""What recipes make of a batch before their loss: text, latents and draws."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Latents, Text
from worker.trainer.rng import StatelessRng


class TextEncoders(Protocol):
    """The text encoders of a base model, with their tokenizers."""

    def encode(self, captions: Sequence[str]) -> Text:
        """What they make of captions: (B, tokens, width) and (B, width)."""
        ...


class VaeNumbers:
    """The shift and scale between the VAE's latents and those that are trained on."""

    def __init__(self, config: dict[str, object]) -> None:
        self.shift_factor = float(str(config.get("shift_factor") or 0.0))
        self.scaling_factor = float(str(config["scaling_factor"]))


@torch.no_grad()
def encode_pixels(vae: AutoencoderKL, pixels: torch.Tensor) -> Latents:
    """The VAE's distribution of images (B, 3, H, W) in [-1, 1]: mean and logvar (B, C, h, w)."""
    # Not vae.dtype, which walks through all modules at each step.
    dtype = vae.encoder.conv_in.weight.dtype
    distribution = vae.encode(pixels.to(dtype)).latent_dist
    return Latents(distribution.mean.float(), distribution.logvar.float())


def sample_latents(latents: Latents, eps: torch.Tensor, vae: VaeNumbers) -> torch.Tensor:
    """Latents drawn from the VAE's distribution, in the scale that is trained on.

    Args:
        latents: Mean and logvar, (B, C, h, w).
        eps: Standard normal, (B, C, h, w).
        vae: The VAE's shift and scale.
    """
    z = latents.mean + torch.exp(0.5 * latents.logvar) * eps  # (B, C, h, w)
    return (z - vae.shift_factor) * vae.scaling_factor


class Inputs:
    """Text, latents and noise of batches, cached or made here.

    Args:
        device: Where they are wanted.
        draws: Decide everything random.
        vae_numbers: The shift and scale of the latents.
        vae: Encodes images at each step; None where latents are cached.
        text: Encodes captions at each step; None where text outputs are cached.
    """

    def __init__(
        self,
        device: torch.device,
        draws: StatelessRng,
        vae_numbers: VaeNumbers,
        vae: AutoencoderKL | None,
        text: TextEncoders | None,
    ) -> None:
        self._device = device
        self._draws = draws
        self._vae_numbers = vae_numbers
        self._vae = vae
        self._text = text

    def drawn(self, kind: str, shape: tuple[int, ...], purpose: str, batch: Batch) -> torch.Tensor:
        """Draws for each sample of the batch, (B, *shape), the same in whatever batch it is.

        Args:
            kind: ``normal`` or ``uniform``.
            shape: Of one sample's.
            purpose: What for; each has its own.
            batch: Whose samples.
        """
        draw = getattr(self._draws, kind)
        rows = torch.stack([draw(shape, purpose, batch.epoch, sample) for sample in batch.samples])
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self._device, non_blocking=True)

    def frozen_text(self, batch: Batch) -> Text:
        """The batch's text, from frozen encoders: their own precision, no gradient."""
        if batch.prompt_embeds is not None and batch.pooled is not None:
            return Text(batch.prompt_embeds, batch.pooled)
        if self._text is None:
            raise AssertionError("without cached text there must be encoders")
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            return self._text.encode(batch.captions)

    def latents(self, batch: Batch) -> torch.Tensor:
        """A draw from the VAE's distribution of each image, (B, C, h, w) float32."""
        with torch.autocast(self._device.type, enabled=False):
            found = self._distribution(batch)
            shape = tuple(found.mean.shape[1:])
            eps = self.drawn("normal", shape, "vae", batch)
            return sample_latents(found, eps, self._vae_numbers)

    def _distribution(self, batch: Batch) -> Latents:
        if batch.latent_mean is not None and batch.latent_logvar is not None:
            return Latents(batch.latent_mean, batch.latent_logvar)
        if self._vae is None or batch.pixels is None:
            raise AssertionError("without cached latents there must be pixels and a VAE")
        return encode_pixels(self._vae, batch.pixels)


def sample_losses(errors: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean of each sample's squared errors, times its weight.

    Args:
        errors: (B, C, h, w) float32.
        batch: With masks where the config uses them: an error counts by its mask's value.

    Returns:
        (B,) float32.
    """
    if batch.masks is not None:
        errors = errors * batch.masks
    return errors.mean(dim=(1, 2, 3)) * batch.weights
