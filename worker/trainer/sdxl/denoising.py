"""SDXL's numbers: text, noise levels, Min-SNR and the errors of denoising.

Where StableDiffusionXLPipeline or the scheduler has a function for it, that function is used, so
that training sees exactly what inference sees.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import Inputs, sample_losses


class SdxlText:
    """Both text encoders, as StableDiffusionXLPipeline uses them.

    Args:
        pipeline: Of the encoders and their tokenizers.
        device: Where the encoders are.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, device: torch.device) -> None:
        self.pipeline = pipeline
        self._device = device

    def to(self, device: torch.device | str) -> None:
        """Move the encoders."""
        for encoder in self.encoders.values():
            encoder.to(device)

    @property
    def encoders(self) -> dict[str, torch.nn.Module]:
        """Both by the names that weights and folders have."""
        return {
            "text_encoder": self.pipeline.text_encoder,
            "text_encoder_2": self.pipeline.text_encoder_2,
        }

    def encode(self, captions: Sequence[str]) -> Text:
        """Penultimate states of both, (B, 77, 2048), and the second's pooled state, (B, 1280)."""
        pipeline: Any = self.pipeline
        prompt_embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=list(captions), device=self._device, do_classifier_free_guidance=False
        )
        return Text(prompt_embeds, pooled)


def denoising_losses(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    inputs: Inputs,
    batch: Batch,
    text: Text,
    min_snr_gamma: float | None,
) -> torch.Tensor:
    """The loss of each sample, (B,), at a noise level of its own.

    Args:
        unet: SDXL's, trained or frozen.
        scheduler: The base model's noise levels, and what the UNet predicts.
        inputs: Latents and noise.
        batch: The samples.
        text: Their captions' outputs.
        min_snr_gamma: For Min-SNR's weight; None weights nothing.
    """
    z = inputs.latents(batch)  # (B, 4, h, w)
    noise = inputs.drawn("normal", tuple(z.shape[1:]), "noise", batch)
    levels = scheduler.config["num_train_timesteps"]
    t = (inputs.drawn("uniform", (), "timestep", batch) * levels).long()  # (B,)
    x = scheduler.add_noise(z, noise, t)  # (B, 4, h, w)
    predicts_velocity = scheduler.config["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(z, noise, t) if predicts_velocity else noise
    # Not unet.dtype, which walks through all modules: of SDXL, longer than some of its blocks take.
    dtype = unet.conv_in.weight.dtype
    predicted = unet(
        x.to(dtype),
        t,
        encoder_hidden_states=text.prompt_embeds.to(dtype),
        added_cond_kwargs={
            "text_embeds": text.pooled.to(dtype),
            "time_ids": batch.time_ids.to(dtype),
        },
        return_dict=False,
    )[0]  # (B, 4, h, w)
    losses = sample_losses((predicted.float() - target.float()).pow(2), batch)
    if min_snr_gamma is None:
        return losses
    snr: torch.Tensor = compute_snr(scheduler, t)  # type: ignore[no-untyped-call] # (B,)
    return losses * min_snr_weight(snr, min_snr_gamma, velocity=predicts_velocity)


def min_snr_weight(snr: torch.Tensor, gamma: float, *, velocity: bool) -> torch.Tensor:
    """Min-SNR's weight (Hang et al., 2023), (B,): min(snr, gamma) / snr, or / (snr + 1)."""
    capped = torch.clamp(snr, max=gamma)
    if velocity:
        return capped / (snr + 1)
    # Schedules that end in pure noise have an snr of 0 there; the ratio's limit is 1.
    return torch.where(snr > 0, capped / snr, 1.0)
