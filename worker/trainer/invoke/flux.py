"""The loss of a FLUX batch by the library's own function, its bugs patched around it.

The function encodes images, adds noise, encodes captions, calls the transformer and takes the
mean of the squared errors. What it calls for that is stood in for, one patch each.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Latents
from worker.trainer.data.inputs import VaeNumbers, encode_pixels
from worker.trainer.flux.flow_matching import min_snr_weight, sigmas
from worker.trainer.rng import StatelessRng

_pack: Any = FluxPipeline._pack_latents


@dataclass
class _Sample:
    """What is known of the batch in hand, as the library's function comes to it."""

    batch: Batch
    shape: tuple[int, int, int]
    """Of a sample's latents, (C, h, w)."""
    sigma: torch.Tensor | None = None
    target: torch.Tensor | None = None
    """The velocity, (B, hw/4, 4C)."""


class FluxForward:
    """Calls the library's ``train_forward`` and stands in for what it calls.

    Args:
        module: The pipeline's, with its own names.
        config: The job's.
        patches: The patches applied.
        draws: Decide everything random.
        numbers: The shift and scale of the VAE's latents.
    """

    def __init__(
        self,
        module: Any,
        config: FluxLoraConfig,
        patches: frozenset[str],
        draws: StatelessRng,
        numbers: VaeNumbers,
    ) -> None:
        self._train_forward = module.train_forward
        self._encode_prompt = module.encode_prompt
        self._get_noisy_latents = module.get_noisy_latents
        self._config = config
        self._patches = patches
        self._draws = draws
        self._numbers = numbers
        self._dtype: torch.dtype = getattr(torch, config.weight_dtype)
        self._now: _Sample | None = None

    def loss(self, batch: Batch, arguments: dict[str, Any]) -> torch.Tensor:
        """The library's loss of a batch."""
        data: dict[str, Any] = {"id": list(batch.samples), "caption": list(batch.captions)}
        found = self._latents(batch, arguments["vae"])
        self._now = _Sample(batch, tuple(found.mean.shape[1:]))  # type: ignore[arg-type]
        cached = batch.latent_mean is not None
        if cached and "cached_latents" not in self._patches:
            data["vae_output"] = (self._drawn(found) * self._numbers.scaling_factor).to(self._dtype)
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
        """Stands for the library's: cached outputs, or what the encoders make."""
        batch = self._sample.batch
        if batch.prompt_embeds is None or batch.pooled is None:
            encoded: tuple[Any, Any, torch.Tensor] = self._encode_prompt(**arguments)
            return encoded
        ids = torch.zeros(batch.prompt_embeds.shape[1], 3, device=arguments["device"])
        return batch.prompt_embeds.to(self._dtype), batch.pooled.to(self._dtype), ids

    def get_noisy_latents(self, scheduler: Any, latents: torch.Tensor, config: Any) -> Any:
        """Stands for the library's: each sample has a noise level of its own.

        Args:
            scheduler: Counts the levels.
            latents: (B, hw/4, 4C).
            config: The library's.

        Returns:
            Noisy latents with a dimension before, which the library takes off, noise, levels as
            the scheduler counts them, and levels.
        """
        sample = self._sample
        if "noise" not in self._patches:
            noisy, noise, times, sigma = self._get_noisy_latents(scheduler, latents, config)
            # Of a sample only: the library's own levels have a batch's shape and more.
            sample.sigma, sample.target = sigma.reshape(-1), noise - latents
            return noisy, noise, times, sigma
        channels, height, width = sample.shape
        noise = self._normal(sample.shape, "noise")  # (B, C, h, w)
        noise = _pack(noise, len(noise), channels, height, width)  # (B, hw/4, 4C)
        sigma = sigmas(
            self._config,
            self._normal((), "sigma"),
            self._rows("uniform", (), "sigma"),
            patches=latents.shape[1],
        )  # (B,)
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
        """What errors count, to be multiplied with (B, hw/4, 4C); None where all count fully."""
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
        """Latents before they are scaled, (B, C, h, w)."""
        eps = self._normal(tuple(found.mean.shape[1:]), "vae")
        z = found.mean + torch.exp(0.5 * found.logvar) * eps
        if "latent_shift" in self._patches:
            z = z - self._numbers.shift_factor
        # The library itself adds noise in the weights' precision.
        return z if "noise" in self._patches else z.to(self._dtype)

    def _encoded(self, found: Latents) -> Any:
        """A VAE that has encoded the batch already."""
        distribution = SimpleNamespace(sample=lambda: self._drawn(found))
        return SimpleNamespace(
            device=found.mean.device,
            dtype=found.mean.dtype,
            config=SimpleNamespace(scaling_factor=self._numbers.scaling_factor),
            encode=lambda image: SimpleNamespace(latent_dist=distribution),
        )

    def _normal(self, shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        return self._rows("normal", shape, purpose)

    def _rows(self, kind: str, shape: tuple[int, ...], purpose: str) -> torch.Tensor:
        """Draws for each sample, (B, *shape), as engine ``diffusers`` makes them."""
        batch = self._sample.batch
        draw = getattr(self._draws, kind)
        rows = [draw(shape, purpose, batch.epoch, sample) for sample in batch.samples]
        return torch.stack(rows).to(batch.weights.device)
