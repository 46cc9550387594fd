"""The FLUX LoRA recipe: which layers get a LoRA, and the loss of a batch."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.jobs.flux_lora import (
    DOUBLE_BLOCK_TARGETS,
    SINGLE_BLOCK_TARGETS,
    FluxLoraConfig,
    flux_lora_targets,
)
from worker.trainer.compute.gradient_checkpointing import checkpoint_blocks
from worker.trainer.compute.norm_casts import cast_norms_once
from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import Inputs, latent_draws, sample_losses
from worker.trainer.flux.attention import replace_attention
from worker.trainer.flux.export import write_lora
from worker.trainer.flux.flow_matching import (
    flow_matching_errors,
    level_draw,
    min_snr_weight,
    sigmas,
)
from worker.trainer.flux.models import FluxModels
from worker.trainer.lora import Lora
from worker.trainer.rng import StatelessRng
from worker.trainer.training_type import Precision


class FluxLora:
    """A frozen FLUX with LoRA layers.

    Args:
        config: The run's config.
        models: The frozen models, on the device; they get LoRA layers.
        rng: Draws the initial LoRA.
    """

    ema_decay = None

    def __init__(self, config: FluxLoraConfig, models: FluxModels, rng: StatelessRng) -> None:
        self._config = config
        self._transformer = models.denoiser
        self._text = models.text
        device = models.denoiser.device
        self._inputs = Inputs(device, models.vae_scaling, models.vae, models.text)
        channels = self._transformer.config["in_channels"] // 4
        self.draws = (*latent_draws(channels), level_draw(config))
        self.precision = Precision(config, device)
        self._lora = Lora()
        self.parameters = self._lora.parameters
        rank, alpha = config.lora_rank_dim, config.lora_alpha()
        if config.train_transformer:
            targets = lora_regex(config)
            self._lora.add(self._transformer, "transformer", targets, rank, alpha, rng)
        if config.train_text_encoder:
            names = config.text_encoder_lora_target_modules
            self._lora.add(self._clip, "text_encoder", names, rank, alpha, rng)
        model = self._transformer
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        checkpoint_blocks(model, blocks, config)
        self._restore = cast_norms_once(model)
        if not config.compile:
            self._restore.append(replace_attention(model))
        self._transformer.train()

    @property
    def _clip(self) -> torch.nn.Module:
        if self._text is None:
            raise AssertionError("a trained text encoder is not cached")
        return self._text.encoders["text_encoder"]

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the flow-matching loss of each sample, (B,), weighted by Min-SNR if configured."""
        self._lora.cast()
        text = self._batch_text(batch)
        z = self._inputs.latents(batch)  # (B, 16, h, w)
        patches = z.shape[2] * z.shape[3] // 4
        sigma = sigmas(self._config, batch.draws["sigma"], patches)  # (B,)
        errors = flow_matching_errors(
            self._transformer, z, batch.draws["noise"], sigma, text, self._config.guidance_scale
        )  # (B, 16, h, w)
        losses = sample_losses(errors, batch)  # (B,)
        if self._config.min_snr_gamma is not None:
            losses = losses * min_snr_weight(sigma, self._config.min_snr_gamma)
        return losses

    def write(
        self,
        folder: Path,
        name: str,
        metadata: Mapping[str, str],
        weights: Mapping[str, torch.Tensor],
    ) -> list[Path]:
        """Write the LoRA, one file."""
        path = folder / f"{name}.safetensors"
        guided = bool(self._transformer.config["guidance_embeds"])
        write_lora(path, weights, self._config, metadata, guided=guided)
        return [path]

    def close(self) -> None:
        """Restore the models."""
        self._lora.remove()
        for restore in self._restore:
            restore()
        self._transformer.disable_gradient_checkpointing()
        self._transformer.eval()

    def _batch_text(self, batch: Batch) -> Text:
        if not self._config.train_text_encoder or self._text is None:
            return self._inputs.frozen_text(batch)
        # T5 stays frozen; only CLIP's pooled state has a gradient.
        with torch.no_grad(), torch.autocast(self._transformer.device.type, enabled=False):
            states = self._text.encode_states(batch.captions)  # (B, tokens, 4096)
        return Text(states, self._text.encode_pooled(batch.captions))


def lora_regex(config: FluxLoraConfig) -> str:
    """Return a regular expression that matches the full name of every layer with a LoRA, only.

    peft matches a list of names by their ends, and ``proj_out`` is also the end of the last layer.
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
