"""The FLUX LoRA recipe: which layers get a LoRA, how it starts, and the loss of a batch."""

import math
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from peft import LoraConfig

from tasks.jobs.flux_lora import (
    DOUBLE_BLOCK_TARGETS,
    SINGLE_BLOCK_TARGETS,
    FluxLoraConfig,
    flux_lora_targets,
)
from worker.trainer.batches import Batch
from worker.trainer.cache_entries import Latents
from worker.trainer.draws import Draws
from worker.trainer.flux import (
    VaeNumbers,
    encode_pixels,
    encode_text,
    flow_matching_loss,
    min_snr_weight,
    sample_latents,
    sigmas,
)

_AUTOCAST_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class FluxLora:
    """A frozen FLUX with LoRA layers, and what it takes to make a loss of a batch.

    Args:
        config: The run's.
        transformer: Frozen, on the device; it is given LoRA layers.
        vae_numbers: The shift and scale of its latents.
        vae: Encodes images at each step; None where latents are cached.
        text_pipeline: Encodes captions at each step; None where text outputs are cached.
        draws: Decide everything random.
    """

    def __init__(
        self,
        config: FluxLoraConfig,
        transformer: FluxTransformer2DModel,
        vae_numbers: VaeNumbers,
        vae: AutoencoderKL | None,
        text_pipeline: FluxPipeline | None,
        draws: Draws,
    ) -> None:
        self._config = config
        self._transformer = transformer
        self._vae_numbers = vae_numbers
        self._vae = vae
        self._text_pipeline = text_pipeline
        self._draws = draws
        self._device = transformer.device
        self._autocast_dtype = _autocast_dtype(config)
        self.parameters = _add_lora(transformer, config, draws)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()

    @property
    def guided(self) -> bool:
        """Whether the base model takes a guidance, as FLUX.1-dev does."""
        return bool(self._transformer.config["guidance_embeds"])

    @property
    def scales_loss(self) -> bool:
        """Whether it computes in float16."""
        return self._autocast_dtype == torch.float16

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass; none for float32."""
        if self._autocast_dtype is None:
            return nullcontext()
        context: AbstractContextManager[object] = torch.autocast(
            self._device.type, dtype=self._autocast_dtype
        )
        return context

    def losses(self, batch: Batch) -> torch.Tensor:
        """The flow-matching loss of each sample, (B,), with Min-SNR's weight where asked for."""
        with torch.autocast(self._device.type, enabled=False):
            prompt_embeds, pooled = self._text(batch)  # (B, tokens, 4096), (B, 768)
            latents = self._latents(batch)  # (B, 16, h, w) each
            shape = tuple(latents.mean.shape[1:])
            # One sigma for each sample: a batch of 2 is two samples, not one level of noise.
            sigma = sigmas(
                self._config,
                self._drawn("normal", (), "sigma", batch),
                self._drawn("uniform", (), "sigma", batch),
            )  # (B,)
            z = sample_latents(
                latents, self._drawn("normal", shape, "vae", batch), self._vae_numbers
            )
            noise = self._drawn("normal", shape, "noise", batch)
        losses = flow_matching_loss(
            self._transformer, z, noise, sigma, prompt_embeds, pooled, self._config.guidance_scale
        )
        if self._config.min_snr_gamma is not None:
            losses = losses * min_snr_weight(sigma, self._config.min_snr_gamma)
        return losses

    def _text(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.prompt_embeds is not None and batch.pooled is not None:
            return batch.prompt_embeds, batch.pooled
        if self._text_pipeline is None:
            raise AssertionError("without cached text there must be encoders")
        texts = encode_text(
            self._text_pipeline,
            batch.captions,
            self._config.t5_tokenizer_max_length,
            self._device,
        )
        return (
            torch.stack([text.prompt_embeds for text in texts]),
            torch.stack([text.pooled for text in texts]),
        )

    def _latents(self, batch: Batch) -> Latents:
        if batch.latent_mean is not None and batch.latent_logvar is not None:
            return Latents(batch.latent_mean, batch.latent_logvar)
        if self._vae is None or batch.pixels is None:
            raise AssertionError("without cached latents there must be pixels and a VAE")
        return encode_pixels(self._vae, batch.pixels)

    def _drawn(self, kind: str, shape: tuple[int, ...], purpose: str, batch: Batch) -> torch.Tensor:
        """Draws for each sample of the batch, (B, *shape), the same in whatever batch it is."""
        draw = getattr(self._draws, kind)
        rows = torch.stack([draw(shape, purpose, batch.epoch, sample) for sample in batch.samples])
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self._device, non_blocking=True)


def lora_regex(config: FluxLoraConfig) -> str:
    """What the full name of every layer with a LoRA matches, and no other's.

    peft takes a list of names by their ends, and ``proj_out`` is also the end of the last layer.
    """
    targets, _ = flux_lora_targets(config.flux_lora_target_modules)
    branches = []
    for blocks, layers in (
        ("transformer_blocks", DOUBLE_BLOCK_TARGETS & targets),
        ("single_transformer_blocks", SINGLE_BLOCK_TARGETS & targets),
    ):
        if layers:
            names = "|".join(re.escape(layer) for layer in sorted(layers))
            branches.append(rf"{blocks}\.\d+\.(?:{names})")
    return "|".join(branches)


def _autocast_dtype(config: FluxLoraConfig) -> torch.dtype | None:
    """The dtype to compute in; None computes in float32 without autocast."""
    weight_dtype: torch.dtype = getattr(torch, config.weight_dtype)
    dtype = _AUTOCAST_DTYPES.get(config.mixed_precision, weight_dtype)
    return None if dtype == torch.float32 else dtype


def _add_lora(
    transformer: FluxTransformer2DModel, config: FluxLoraConfig, draws: Draws
) -> dict[str, torch.nn.Parameter]:
    """Give the transformer its LoRA layers, in float32, as Hu et al., 2021 start them.

    Returns:
        The trained weights by name (``transformer_blocks.0.attn.to_q.lora_A``), sorted.
    """
    adapter = LoraConfig(
        r=config.lora_rank_dim,
        lora_alpha=config.lora_alpha(),  # type: ignore[arg-type] # any number will do
        target_modules=lora_regex(config),
        lora_dropout=0.0,
        bias="none",
    )
    # peft fills the layers from the global generator first; fork it, so that nobody else's draws
    # depend on how many layers there are.
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(adapter)
    found: dict[str, torch.nn.Parameter] = {}
    for full_name, parameter in transformer.named_parameters():
        if ".lora_" not in full_name:
            continue
        name = full_name.removesuffix(".default.weight")
        parameter.data = _start_of(name, parameter, draws)
        parameter.requires_grad_(True)
        found[name] = parameter
    return dict(sorted(found.items()))


def _start_of(name: str, parameter: Any, draws: Draws) -> torch.Tensor:
    """B starts at zero, so that the first step trains the base model; A as a linear layer does."""
    if name.endswith("lora_B"):
        return torch.zeros(parameter.shape, device=parameter.device)
    bound = 1 / math.sqrt(parameter.shape[1])  # kaiming_uniform with a = sqrt(5)
    values = draws.uniform(tuple(parameter.shape), "lora", name) * (2 * bound) - bound
    return values.to(parameter.device)
