"""The SDXL LoRA recipe: LoRA layers on the UNet and both text encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.jobs.sdxl import SdxlLoraConfig
from worker.trainer.compute.gradient_checkpointing import checkpoint_blocks, checkpoint_layers
from worker.trainer.compute.norm_casts import cast_norms_once
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.lora import Lora
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.denoising import denoising_losses, unet_draws
from worker.trainer.sdxl.export import sdxl_entries, write_sdxl_lora
from worker.trainer.sdxl.models import SdxlModels, SdxlText, unet_blocks
from worker.trainer.training_type import Precision


class SdxlLora:
    """A frozen SDXL with LoRA layers.

    Args:
        config: The run's config.
        models: The frozen models, on the device; they get LoRA layers.
        rng: Draws the initial LoRA.
    """

    ema_decay = None

    def __init__(self, config: SdxlLoraConfig, models: SdxlModels, rng: StatelessRng) -> None:
        self._config = config
        self._unet = models.denoiser
        self._scheduler = models.scheduler
        self._text = models.text
        device = models.denoiser.device
        self._inputs = Inputs(device, models.vae_scaling, models.vae, models.text)
        self.draws = unet_draws(self._unet)
        self.precision = Precision(config, device)
        rank, alpha = config.lora_rank_dim, config.lora_alpha()
        self._adapted: dict[str, Any] = {"unet": self._unet} if config.train_unet else {}
        if config.train_text_encoder:
            self._adapted |= self._trained_text.encoders
        self._lora = Lora()
        self.parameters = self._lora.parameters
        for name, model in self._adapted.items():
            is_unet = name == "unet"
            targets = (
                config.unet_lora_target_modules
                if is_unet
                else config.text_encoder_lora_target_modules
            )
            self._lora.add(model, name, targets, rank, alpha, rng)
        # Gradients pass through the UNet even if only the encoders before it are trained.
        checkpoint_blocks(self._unet, unet_blocks(self._unet), config)
        self._restore = cast_norms_once(self._unet)
        for name, model in self._adapted.items():
            if name != "unet" and config.checkpointed_blocks:
                checkpoint_layers(model, enabled=True)
                model.train()

    @property
    def _trained_text(self) -> SdxlText:
        if self._text is None:
            raise AssertionError("trained text encoders are not cached")
        return self._text

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the denoising loss of each sample, (B,)."""
        self._lora.cast()
        if self._config.train_text_encoder:
            text = self._trained_text.encode(batch.captions)
        else:
            text = self._inputs.frozen_text(batch)
        gamma = self._config.min_snr_gamma
        return denoising_losses(self._unet, self._scheduler, self._inputs, batch, text, gamma)

    def write(
        self,
        folder: Path,
        name: str,
        metadata: Mapping[str, str],
        weights: Mapping[str, torch.Tensor],
    ) -> list[Path]:
        """Write the LoRA, one file."""
        path = folder / f"{name}.safetensors"
        alpha = self._config.lora_alpha()
        entries = {**metadata, **sdxl_entries(self._scheduler, "lora")}
        write_sdxl_lora(path, weights, self._config, alpha, entries, self._unet)
        return [path]

    def close(self) -> None:
        """Restore the models."""
        self._lora.remove()
        for name, model in self._adapted.items():
            model.eval()
            if name != "unet":
                checkpoint_layers(model, enabled=False)
        for restore in self._restore:
            restore()
        self._unet.disable_gradient_checkpointing()
        self._unet.eval()
