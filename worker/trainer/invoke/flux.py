"""The loss of a FLUX batch by the library's own function, patched from outside.

The function encodes images, adds noise, encodes captions, calls the transformer and takes the
mean of the squared errors. Each patch replaces one of the functions that it calls.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.data.batches import Batch, Kind
from worker.trainer.data.cache_entries import Latents
from worker.trainer.data.inputs import VaeScaling, encode_pixels
from worker.trainer.flux.flow_matching import level_draw, min_snr_weight, sigmas
from worker.trainer.rng import StatelessRng

_pack: Any = FluxPipeline._pack_latents


@dataclass
class _Sample:
    """The batch whose loss the library is computing."""

    batch: Batch
    shape: tuple[int, int, int]
    """The shape of a sample's latents, (C, h, w)."""
    sigma: torch.Tensor | None = None
    target: torch.Tensor | None = None
    """The velocity, (B, hw/4, 4C)."""


class FluxForward:
    """Calls the library's ``train_forward`` and replaces functions that it calls.

    Args:
        module: The pipeline's module, not patched yet.
        config: The job's config.
        patches: The patches.
        rng: Makes the random draws.
        scaling: The shift and scale of the VAE's latents.
    """

    def __init__(
        self,
        module: Any,
        config: FluxLoraConfig,
        patches: frozenset[str],
        rng: StatelessRng,
        scaling: VaeScaling,
    ) -> None:
        self._train_forward = module.train_forward
        self._encode_prompt = module.encode_prompt
        self._get_noisy_latents = module.get_noisy_latents
        self._config = config
        self._patches = patches
        self._rng = rng
        self._scaling = scaling
        self._dtype: torch.dtype = getattr(torch, config.weight_dtype)
        self._now: _Sample | None = None

    @property
    def replacements(self) -> dict[str, Any]:
        """The replaced functions by their names in the module."""
        return {
            "encode_prompt": self.encode_prompt,
            "get_noisy_latents": self.get_noisy_latents,
        }

    def loss(self, batch: Batch, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the library's loss of a batch."""
        data: dict[str, Any] = {"id": list(batch.samples), "caption": list(batch.captions)}
        found = self._latents(batch, arguments["vae"])
        self._now = _Sample(batch, tuple(found.mean.shape[1:]))  # type: ignore[arg-type]
        cached = batch.latent_mean is not None
        if cached and "cached_latents" not in self._patches:
            data["vae_output"] = (self._drawn(found) * self._scaling.scaling_factor).to(self._dtype)
        else:
            data["image"] = found.mean
            arguments = {**arguments, "vae": self._encoded(found)}
        if batch.prompt_embeds is not None and "cached_text" not in self._patches:
            data["prompt_embeds"] = batch.prompt_embeds.to(self._dtype)
            data["pooled_prompt_embeds"] = batch.pooled
        transformer = arguments["transformer"]

        def transform(**inputs: Any) -> tuple[torch.Tensor]:
            return self._transform(transformer, inputs)

        loss: torch.Tensor = self._train_forward(
            **{**arguments, "data_batch": data, "transformer": transform}
        )
        return loss

    def encode_prompt(self, **arguments: Any) -> tuple[Any, Any, torch.Tensor]:
        """Replace the library's function: return cached outputs, or encode by it."""
        batch = self._sample.batch
        if batch.prompt_embeds is None or batch.pooled is None:
            encoded: tuple[Any, Any, torch.Tensor] = self._encode_prompt(**arguments)
            return encoded
        ids = torch.zeros(batch.prompt_embeds.shape[1], 3, device=arguments["device"])
        return batch.prompt_embeds.to(self._dtype), batch.pooled.to(self._dtype), ids

    def get_noisy_latents(self, scheduler: Any, latents: torch.Tensor, config: Any) -> Any:
        """Replace the library's function: draw a noise level for each sample.

        Args:
            scheduler: The scheduler, which numbers the levels.
            latents: (B, hw/4, 4C).
            config: The library's config.

        Returns:
            Noisy latents, (1, B, hw/4, 4C), whose first dimension the library removes; noise,
            (B, hw/4, 4C); the levels as the scheduler numbers them, (B,); and the levels, (B,).
        """
        sample = self._sample
        if "noise" not in self._patches:
            noisy, noise, times, sigma = self._get_noisy_latents(scheduler, latents, config)
            # The library's own levels have more dimensions than (B,).
            sample.sigma, sample.target = sigma.reshape(-1), noise - latents
            return noisy, noise, times, sigma
        channels, height, width = sample.shape
        noise = self._normal(sample.shape, "noise")  # (B, C, h, w)
        noise = _pack(noise, len(noise), channels, height, width)  # (B, hw/4, 4C)
        draw = level_draw(self._config)
        drawn = self._rows(draw.kind, (), draw.purpose)  # (B,)
        sigma = sigmas(self._config, drawn, patches=latents.shape[1])  # (B,)
        level = sigma.view(-1, 1, 1)
        noisy = (1 - level) * latents + level * noise
        sample.sigma, sample.target = sigma, noise - latents
        return (
            noisy[None].to(self._dtype),
            noise,
            sigma * scheduler.config.num_train_timesteps,
            sigma,
        )

    @property
    def _sample(self) -> _Sample:
        assert self._now is not None
        return self._now

    def _transform(self, transformer: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor]:
        if "guidance" in self._patches and not transformer.config["guidance_embeds"]:
            inputs["guidance"] = None
        (predicted,) = transformer(**inputs)
        if "weighted_loss" not in self._patches:
            return (predicted,)
        weight = self._weight()
        if weight is None:
            return (predicted,)
        # The library squares the difference to the target, and takes the mean: so it gets
        # weight * difference^2.
        target = self._sample.target
        assert target is not None
        return (target + weight.sqrt() * (predicted.float() - target),)

    def _weight(self) -> torch.Tensor | None:
        """Return the weight of the errors, broadcastable to (B, hw/4, 4C); None for 1."""
        sample, weight = self._sample, None
        if self._config.min_snr_gamma is not None:
            assert sample.sigma is not None
            weight = min_snr_weight(sample.sigma, self._config.min_snr_gamma).view(-1, 1, 1)
        masks = sample.batch.masks  # (B, 1, h, w)
        if masks is not None:
            channels, height, width = sample.shape
            spread = masks.expand(-1, channels, -1, -1)
            packed = _pack(spread, len(spread), channels, height, width)  # (B, hw/4, 4C)
            weight = packed if weight is None else packed * weight
        return weight

    def _latents(self, batch: Batch, vae: AutoencoderKL) -> Latents:
        if batch.latent_mean is not None and batch.latent_logvar is not None:
            return Latents(batch.latent_mean, batch.latent_logvar)
        assert batch.pixels is not None
        return encode_pixels(vae, batch.pixels)

    def _drawn(self, found: Latents) -> torch.Tensor:
        """Sample latents before they are scaled, (B, C, h, w)."""
        eps = self._normal(tuple(found.mean.shape[1:]), "vae")
        z = found.mean + torch.exp(0.5 * found.logvar) * eps
        if "latent_shift" in self._patches:
            z = z - self._scaling.shift_factor
        # Without the patch the library adds noise in the weights' precision.
        return z if "noise" in self._patches else z.to(self._dtype)

    def _encoded(self, found: Latents) -> Any:
        """Return a stand-in for the VAE that has encoded the batch already."""
        distribution = SimpleNamespace(sample=lambda: self._drawn(found))
        return SimpleNamespace(
            device=found.mean.device,
            dtype=found.mean.dtype,
            config=SimpleNamespace(scaling_factor=self._scaling.scaling_factor),
            encode=lambda image: SimpleNamespace(latent_dist=distribution),
        )

    def _normal(self, shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        return self._rows("normal", shape, purpose)

    def _rows(self, kind: Kind, shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        """Draw numbers for each sample, (B, *shape), as engine ``diffusers`` does."""
        batch = self._sample.batch
        draw = self._rng.normal if kind == "normal" else self._rng.uniform
        rows = [draw(shape, purpose, batch.epoch, sample) for sample in batch.samples]
        return torch.stack(rows).to(batch.weights.device)
