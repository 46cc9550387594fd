"""The loss of an SDXL batch by the library's own function, which all three types share."""

from typing import Any

import torch

from tasks.jobs.sdxl import SdxlConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.cache_entries import Latents
from worker.trainer.data.inputs import VaeNumbers, sample_latents
from worker.trainer.rng import StatelessRng


class SdxlForward:
    """Calls the library's ``train_forward`` with a batch as it wants it.

    Args:
        module: The pipeline's, with its own names.
        config: The job's.
        patches: The patches applied.
        draws: Decide which latents of a cached distribution are taken.
        numbers: The scale of the VAE's latents.
    """

    def __init__(
        self,
        module: Any,
        config: SdxlConfig,
        patches: frozenset[str],
        draws: StatelessRng,
        numbers: VaeNumbers,
    ) -> None:
        self._train_forward = module.train_forward
        self._patches = patches
        self._draws = draws
        self._numbers = numbers
        self._dtype: torch.dtype = getattr(torch, config.weight_dtype)

    def loss(self, batch: Batch, arguments: dict[str, Any]) -> torch.Tensor:
        """The library's loss of a batch."""
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
        rows = [self._draws.normal(shape, "vae", batch.epoch, sample) for sample in batch.samples]
        eps = torch.stack(rows).to(mean.device)
        return sample_latents(Latents(mean, logvar), eps, self._numbers).to(self._dtype)
