"""SDXL's loss: noise levels, Min-SNR and the errors of denoising (Ho et al., 2020).

Where possible, the scheduler's own functions are used: training then sees exactly what inference
sees.
"""

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from worker.trainer.data.batches import Batch, Draw
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import Inputs, latent_draws, sample_losses


def unet_draws(unet: UNet2DConditionModel) -> tuple[Draw, ...]:
    """Return the draws of ``denoising_losses``."""
    return *latent_draws(unet.config["in_channels"]), Draw("uniform", "timestep")


def denoising_losses(
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    inputs: Inputs,
    batch: Batch,
    text: Text,
    min_snr_gamma: float | None,
) -> torch.Tensor:
    """Return the loss of each sample, (B,), at a noise level drawn for it.

    Args:
        unet: SDXL's UNet, trained or frozen.
        scheduler: The base model's noise levels, and what the UNet predicts.
        inputs: Makes latents.
        batch: The samples, with the draws of ``unet_draws``.
        text: The encoded captions, (B, 77, 2048) and (B, 1280).
        min_snr_gamma: The largest signal-to-noise ratio that counts; None weights nothing.
    """
    z = inputs.latents(batch)  # (B, 4, h, w)
    noise = batch.draws["noise"]  # (B, 4, h, w)
    levels = scheduler.config["num_train_timesteps"]
    t = (batch.draws["timestep"] * levels).long()  # (B,)
    x = scheduler.add_noise(z, noise, t)  # (B, 4, h, w)
    predicts_velocity = scheduler.config["prediction_type"] == "v_prediction"
    target = scheduler.get_velocity(z, noise, t) if predicts_velocity else noise  # (B, 4, h, w)
    # Not unet.dtype, which walks through all modules: slower than some of SDXL's blocks.
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
    losses = sample_losses((predicted.float() - target.float()).pow(2), batch)  # (B,)
    if min_snr_gamma is None:
        return losses
    snr: torch.Tensor = compute_snr(scheduler, t)  # type: ignore[no-untyped-call] # (B,)
    return losses * min_snr_weight(snr, min_snr_gamma, velocity=predicts_velocity)


def min_snr_weight(snr: torch.Tensor, gamma: float, *, velocity: bool) -> torch.Tensor:
    """Return Min-SNR's weight (Hang et al., 2023), (B,).

    It is min(snr, gamma) / snr, and for velocities min(snr, gamma) / (snr + 1).

    Args:
        snr: Signal-to-noise ratios, (B,).
        gamma: The largest ratio that counts.
        velocity: Whether the model predicts velocities.
    """
    capped = torch.clamp(snr, max=gamma)
    if velocity:
        return capped / (snr + 1)
    # A schedule that ends in pure noise has an snr of 0 there; the ratio's limit is 1.
    return torch.where(snr > 0, capped / snr, 1.0)
