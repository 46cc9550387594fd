"""The FLUX LoRA recipe: which layers get a LoRA, and the loss of a batch."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from tasks.jobs.flux_lora import (
    DOUBLE_BLOCK_TARGETS,
    SINGLE_BLOCK_TARGETS,
    FluxLoraConfig,
    flux_lora_targets,
)
from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import Inputs, sample_losses
from worker.trainer.flux.flow_matching import FluxText, flow_matching_errors, min_snr_weight, sigmas
from worker.trainer.flux.lora_export import write_lora
from worker.trainer.lora import add_lora, remove_lora
from worker.trainer.models import FluxModels
from worker.trainer.precision import Precision
from worker.trainer.rng import StatelessRng


class FluxLora:
    """A frozen FLUX with LoRA layers, and what it takes to make a loss of a batch.

    Args:
        config: The run's.
        models: Frozen, on the device; they are given LoRA layers.
        draws: Decide everything random.
    """

    def __init__(self, config: FluxLoraConfig, models: FluxModels, draws: StatelessRng) -> None:
        self._config = config
        self._transformer = models.transformer
        self._text = models.text
        device = models.transformer.device
        self._inputs = Inputs(device, draws, models.vae_numbers, models.vae, models.text)
        self._precision = Precision(config, device)
        self.parameters: dict[str, torch.nn.Parameter] = {}
        rank, alpha = config.lora_rank_dim, config.lora_alpha()
        if config.train_transformer:
            targets = lora_regex(config)
            self.parameters |= add_lora(
                self._transformer, "transformer", targets, rank, alpha, draws
            )
        if config.train_text_encoder:
            names = config.text_encoder_lora_target_modules
            self.parameters |= add_lora(self._clip, "text_encoder", names, rank, alpha, draws)
        if config.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing()
        self._transformer.train()

    @property
    def _clip(self) -> torch.nn.Module:
        if not isinstance(self._text, FluxText):
            raise AssertionError("a trained text encoder is not cached")
        clip: torch.nn.Module = self._text.pipeline.text_encoder
        return clip

    @property
    def scales_loss(self) -> bool:
        """Whether it computes in float16."""
        return self._precision.scales_loss

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass; none for float32."""
        return self._precision.autocast()

    def losses(self, batch: Batch) -> torch.Tensor:
        """The flow-matching loss of each sample, (B,), with Min-SNR's weight where asked for."""
        text = self._batch_text(batch)
        z = self._inputs.latents(batch)  # (B, 16, h, w)
        shape = tuple(z.shape[1:])
        noise = self._inputs.drawn("normal", shape, "noise", batch)
        # One sigma for each sample: a batch of 2 is two samples, not one level of noise.
        sigma = sigmas(
            self._config,
            self._inputs.drawn("normal", (), "sigma", batch),
            self._inputs.drawn("uniform", (), "sigma", batch),
            patches=z.shape[2] * z.shape[3] // 4,
        )  # (B,)
        errors = flow_matching_errors(
            self._transformer, z, noise, sigma, text, self._config.guidance_scale
        )
        losses = sample_losses(errors, batch)
        if self._config.min_snr_gamma is not None:
            losses = losses * min_snr_weight(sigma, self._config.min_snr_gamma)
        return losses

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """Write the LoRA, one file."""
        path = folder / f"{name}.safetensors"
        guided = bool(self._transformer.config["guidance_embeds"])
        write_lora(path, weights, self._config, name=name, step=steps, guided=guided)
        return [path]

    def close(self) -> None:
        """Leave the models as they were."""
        if self._config.train_transformer:
            remove_lora(self._transformer)
        if self._config.train_text_encoder:
            remove_lora(self._clip)
        self._transformer.disable_gradient_checkpointing()
        self._transformer.eval()

    def _batch_text(self, batch: Batch) -> Text:
        text = self._inputs.frozen_text(batch)
        if not self._config.train_text_encoder or self._text is None:
            return text
        # T5 stays frozen; only CLIP's pooled state has a gradient.
        pooled = self._text.encode_pooled(batch.captions)
        return replace(text, pooled=pooled)


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
