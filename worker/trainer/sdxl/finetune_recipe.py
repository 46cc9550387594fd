"""The SDXL finetune recipe: every weight of the UNet, in float32."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.jobs.sdxl import SdxlFinetuneConfig
from worker.trainer.compute.gradient_checkpointing import checkpoint_blocks
from worker.trainer.compute.norm_casts import cast_norms_once
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.sdxl.denoising import denoising_losses, unet_draws
from worker.trainer.sdxl.export import sdxl_entries, write_checkpoint
from worker.trainer.sdxl.models import SdxlModels, unet_blocks
from worker.trainer.training_type import Precision


class SdxlFinetune:
    """An SDXL whose UNet is trained.

    Args:
        config: The run's config.
        models: The models on the device, the UNet in float32.
    """

    def __init__(self, config: SdxlFinetuneConfig, models: SdxlModels) -> None:
        self._config = config
        self._unet = models.denoiser
        self._scheduler = models.scheduler
        device = models.denoiser.device
        self._inputs = Inputs(device, models.vae_scaling, models.vae, models.text)
        self.draws = unet_draws(self._unet)
        self.precision = Precision(config, device)
        self.ema_decay = config.ema_decay if config.use_ema else None
        self._unet.requires_grad_(True)
        self._unet.train()
        checkpoint_blocks(self._unet, unet_blocks(self._unet), config)
        cast_norms_once(self._unet)
        self.parameters = {f"unet.{path}": p for path, p in self._unet.named_parameters()}

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the denoising loss of each sample, (B,)."""
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
        """Write the UNet, or the whole pipeline around it, in the config's form."""
        entries = {**metadata, **sdxl_entries(self._scheduler, None)}
        unet = {path.removeprefix("unet."): tensor for path, tensor in weights.items()}
        return write_checkpoint(folder, name, self._config, self._unet, unet, entries)

    def close(self) -> None:
        """Do nothing: the UNet stays changed."""
