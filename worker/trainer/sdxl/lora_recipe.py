"""The SDXL LoRA recipe: LoRA layers on the UNet and both text encoders."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tasks.jobs.sdxl import SdxlLoraConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.lora import add_lora, remove_lora
from worker.trainer.models import SdxlModels
from worker.trainer.precision import Precision
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.denoising import SdxlText, denoising_losses
from worker.trainer.sdxl.metadata import sdxl_metadata
from worker.trainer.sdxl.tensor_names import kohya_tensors, peft_tensors


class SdxlLora:
    """A frozen SDXL with LoRA layers.

    Args:
        config: The run's.
        models: Frozen, on the device; they are given LoRA layers.
        draws: Decide everything random.
    """

    def __init__(self, config: SdxlLoraConfig, models: SdxlModels, draws: StatelessRng) -> None:
        self._config = config
        self._unet = models.unet
        self._scheduler = models.scheduler
        self._text = models.text
        device = models.unet.device
        self._inputs = Inputs(device, draws, models.vae_numbers, models.vae, models.text)
        self._precision = Precision(config, device)
        rank, alpha = config.lora_rank_dim, config.lora_alpha()
        self._adapted: dict[str, Any] = {"unet": models.unet} if config.train_unet else {}
        if config.train_text_encoder:
            self._adapted |= self._trained_text.encoders
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name, model in self._adapted.items():
            is_unet = name == "unet"
            targets = (
                config.unet_lora_target_modules
                if is_unet
                else config.text_encoder_lora_target_modules
            )
            self.parameters |= add_lora(model, name, targets, rank, alpha, draws)
        if config.gradient_checkpointing:
            self._checkpoint_gradients()

    def _checkpoint_gradients(self) -> None:
        # The UNet's activations are also kept where only the encoders under it are trained.
        self._unet.enable_gradient_checkpointing()
        self._unet.train()
        for name, model in self._adapted.items():
            if name != "unet":
                # The other form needs inputs with a gradient, which token ids have not.
                model.activation_checkpointing_enable({"use_reentrant": False})
                model.train()

    @property
    def _trained_text(self) -> SdxlText:
        if self._text is None:
            raise AssertionError("trained text encoders are not cached")
        return self._text

    @property
    def scales_loss(self) -> bool:
        """Whether it computes in float16."""
        return self._precision.scales_loss

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass; none for float32."""
        return self._precision.autocast()

    def losses(self, batch: Batch) -> torch.Tensor:
        """The denoising loss of each sample, (B,)."""
        if self._config.train_text_encoder:
            text = self._trained_text.encode(batch.captions)
        else:
            text = self._inputs.frozen_text(batch)
        gamma = self._config.min_snr_gamma
        return denoising_losses(self._unet, self._scheduler, self._inputs, batch, text, gamma)

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """Write the LoRA, one file."""
        path = folder / f"{name}.safetensors"
        alpha = self._config.lora_alpha()
        metadata = sdxl_metadata(self._config, self._scheduler, name, steps, "lora")
        write_sdxl_lora(path, weights, self._config, alpha, metadata)
        return [path]

    def close(self) -> None:
        """Leave the models as they were."""
        for name, model in self._adapted.items():
            remove_lora(model)
            model.eval()
            if name != "unet":
                model.activation_checkpointing_disable()
        self._unet.disable_gradient_checkpointing()
        self._unet.eval()


def write_sdxl_lora(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: SdxlLoraConfig,
    alpha: float,
    metadata: Mapping[str, str],
) -> None:
    """Write a LoRA in the config's form, the same bytes for the same weights."""
    is_kohya = config.lora_checkpoint_format == "kohya"
    tensors = kohya_tensors(weights, alpha) if is_kohya else peft_tensors(weights, alpha)
    lora = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora_rank_dim),
        "ss_network_alpha": str(alpha),
    }
    write_safetensors(path, tensors, {**metadata, **lora})
