"""The SDXL finetune recipe: every weight of the UNet, in float32."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from tasks.jobs.sdxl import SdxlFinetuneConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.models import SdxlModels
from worker.trainer.precision import Precision
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.denoising import denoising_losses
from worker.trainer.sdxl.metadata import sdxl_metadata
from worker.trainer.sdxl.model_export import write_checkpoint


class SdxlFinetune:
    """An SDXL whose UNet is trained.

    Args:
        config: The run's.
        models: On the device, the UNet in float32.
        draws: Decide everything random.
    """

    def __init__(self, config: SdxlFinetuneConfig, models: SdxlModels, draws: StatelessRng) -> None:
        self._config = config
        self._unet = models.unet
        self._scheduler = models.scheduler
        device = models.unet.device
        self._inputs = Inputs(device, draws, models.vae_numbers, models.vae, models.text)
        self._precision = Precision(config, device)
        self._unet.requires_grad_(True)
        self._unet.train()
        if config.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
        self.parameters = {f"unet.{path}": p for path, p in self._unet.named_parameters()}

    @property
    def scales_loss(self) -> bool:
        """Whether it computes in float16."""
        return self._precision.scales_loss

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass; none for float32."""
        return self._precision.autocast()

    def losses(self, batch: Batch) -> torch.Tensor:
        """The denoising loss of each sample, (B,)."""
        text = self._inputs.frozen_text(batch)
        gamma = self._config.min_snr_gamma
        return denoising_losses(self._unet, self._scheduler, self._inputs, batch, text, gamma)

    def close(self) -> None:
        """Nothing: the UNet is another one now."""

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """Write the UNet, or the whole pipeline around it, in the config's form."""
        metadata = sdxl_metadata(self._config, self._scheduler, name, steps, None)
        unet = {path.removeprefix("unet."): tensor for path, tensor in weights.items()}
        return write_checkpoint(folder, name, self._config, self._unet, unet, metadata)
