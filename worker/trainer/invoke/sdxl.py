"""The loss of an SDXL batch by the library's own function, which all three types share."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from tasks.jobs.sdxl import SdxlConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Latents
from worker.trainer.data.inputs import VaeScaling, sample_latents
from worker.trainer.errors import RefusedError
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.models import load_noise_scheduler

# The library's noise schedule, whatever the base model's.
_SCHEDULE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class SdxlForward:
    """Calls the library's ``train_forward`` with a batch in the library's form.

    Args:
        module: The pipeline's module, not patched yet.
        config: The job's config.
        patches: The patches.
        rng: Draws latents from cached distributions.
        scaling: The scale of the VAE's latents.
    """

    replacements: Mapping[str, Any] = {}
    """The replaced functions by their names in the module: none."""

    def __init__(
        self,
        module: Any,
        config: SdxlConfig,
        patches: frozenset[str],
        rng: StatelessRng,
        scaling: VaeScaling,
    ) -> None:
        self._train_forward = module.train_forward
        self._patches = patches
        self._rng = rng
        self._scaling = scaling
        self._dtype: torch.dtype = getattr(torch, config.weight_dtype)

    def loss(self, batch: Batch, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the library's loss of a batch."""
        sizes = [[int(value) for value in row] for row in batch.time_ids.tolist()]
        data: dict[str, Any] = {
            "id": list(batch.samples),
            "caption": list(batch.captions),
            "original_size_hw": [(row[0], row[1]) for row in sizes],
            "crop_top_left_yx": [(row[2], row[3]) for row in sizes],
            "loss_weight": batch.weights,
        }
        if batch.latent_mean is not None and batch.latent_logvar is not None:
            data["vae_output"] = self._latents(batch.latent_mean, batch.latent_logvar, batch)
        else:
            data["image"] = batch.pixels
        if batch.prompt_embeds is not None and batch.pooled is not None:
            data["prompt_embeds"] = batch.prompt_embeds.to(self._dtype)
            data["pooled_prompt_embeds"] = batch.pooled.to(self._dtype)
        if batch.masks is not None:
            data["mask"] = batch.masks
        if "target_size" in self._patches:
            # All samples of a batch have the same size.
            arguments = {**arguments, "resolution": (sizes[0][4], sizes[0][5])}
        loss: torch.Tensor = self._train_forward(**{**arguments, "data_batch": data})
        return loss

    def _latents(self, mean: torch.Tensor, logvar: torch.Tensor, batch: Batch) -> torch.Tensor:
        shape = tuple(mean.shape[1:])
        rows = [self._rng.normal(shape, "vae", batch.epoch, sample) for sample in batch.samples]
        eps = torch.stack(rows).to(mean.device)
        return sample_latents(Latents(mean, logvar), eps, self._scaling).to(self._dtype)


def library_values(config: SdxlConfig) -> dict[str, Any]:
    """Return the values of the library's config that depend on the base model.

    Raises:
        RefusedError: The library would train this base model wrongly.
    """
    scheduler = load_noise_scheduler(config)
    if not torch.allclose(scheduler.alphas_cumprod, _SCHEDULE.alphas_cumprod, atol=1e-6):
        raise RefusedError(
            "the base model has another noise schedule than SDXL's, with which engine "
            "invoke-training trains every model"
        )
    prediction = scheduler.config["prediction_type"]
    if prediction == "v_prediction" and config.min_snr_gamma is not None:
        raise RefusedError(
            "the base model predicts velocities, and engine invoke-training weights these "
            "wrongly with min_snr_gamma; set it to null"
        )
    # By default the library assumes that every model predicts noise.
    return {"prediction_type": prediction}
