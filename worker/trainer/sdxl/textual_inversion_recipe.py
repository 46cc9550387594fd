"""The SDXL textual-inversion recipe (Gal et al., 2022): new rows of both embedding tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tasks.jobs.data_loaders import PLACEHOLDER
from tasks.jobs.sdxl import SdxlTextualInversionConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.errors import PlaceholderError
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.denoising import denoising_losses
from worker.trainer.sdxl.embeddings import (
    FILE_KEYS,
    TableWithNewRows,
    add_rows,
    add_tokens,
    read_embedding,
)
from worker.trainer.sdxl.export import sdxl_metadata
from worker.trainer.sdxl.models import SdxlModels, SdxlText
from worker.trainer.training_type import Precision


class SdxlTextualInversion:
    """A frozen SDXL whose text encoders learn a new word.

    Args:
        config: The run's config.
        models: The frozen models, on the device; tokenizers and embedding tables get new rows.
        rng: Makes the random draws.

    Raises:
        PlaceholderError: The token, or its initial embedding, cannot be used.
    """

    ema_decay = None

    def __init__(
        self, config: SdxlTextualInversionConfig, models: SdxlModels, rng: StatelessRng
    ) -> None:
        if models.text is None:
            raise AssertionError("trained text encoders are not cached")
        self._config = config
        self._unet = models.denoiser
        self._scheduler = models.scheduler
        self._text = models.text
        device = models.denoiser.device
        self._inputs = Inputs(device, rng, models.vae_scaling, models.vae, models.text)
        self.precision = Precision(config, device)
        self._tables: dict[str, TableWithNewRows] = {}
        for name, tokenizer in models.text.tokenizers.items():
            start = _start(config, name, models.text)
            add_tokens(tokenizer, config.placeholder_token, len(start))
            self._tables[name] = add_rows(models.text.encoders[name], tokenizer, start)
        self.parameters = {
            f"{name}.placeholder": table.new_rows for name, table in self._tables.items()
        }
        if config.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
            self._unet.train()

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the denoising loss of each sample, (B,)."""
        # encode_prompt replaces a word of several vectors by its tokens, as at inference.
        token = self._config.placeholder_token
        text = self._text.encode(
            [caption.replace(PLACEHOLDER, token) for caption in batch.captions]
        )
        gamma = self._config.min_snr_gamma
        return denoising_losses(self._unet, self._scheduler, self._inputs, batch, text, gamma)

    def close(self) -> None:
        """Restore the UNet; the text encoders stay changed."""
        self._unet.disable_gradient_checkpointing()
        self._unet.eval()

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """Write the embedding, one file of ``clip_l`` (n, 768) and ``clip_g`` (n, 1280)."""
        path = folder / f"{name}.safetensors"
        tensors = {key: weights[f"{model}.placeholder"] for model, key in FILE_KEYS.items()}
        metadata = sdxl_metadata(self._config, self._scheduler, name, steps, "textual-inversion")
        token = {"modelspec.trigger_phrase": self._config.placeholder_token}
        write_safetensors(path, tensors, metadata | token)
        return [path]


def _start(config: SdxlTextualInversionConfig, name: str, text: SdxlText) -> torch.Tensor:
    """Return the initial values of a word's rows in one encoder, (n, width) float32.

    Raises:
        PlaceholderError: The config's start does not fit the base model.
    """
    if config.initial_embedding_file is not None:
        rows = read_embedding(config.initial_embedding_file)[FILE_KEYS[name]]
        if config.num_vectors not in (1, len(rows)):
            raise PlaceholderError(
                f"{config.initial_embedding_file} holds {len(rows)} vectors, but num_vectors is "
                f"{config.num_vectors}; leave num_vectors out"
            )
        return rows.float()
    table: torch.Tensor = text.encoders[name].get_input_embeddings().weight  # type: ignore[operator]
    words = config.initial_phrase or config.initializer_token or ""
    ids: Sequence[int] = text.tokenizers[name].encode(words, add_special_tokens=False)
    if not ids:
        raise PlaceholderError(f"the base model's tokenizer finds no token in {words!r}")
    if config.initializer_token is not None:
        if len(ids) > 1:
            raise PlaceholderError(
                f"initializer_token {words!r} is {len(ids)} tokens; choose a word that is one, or "
                "use initial_phrase"
            )
        ids = [ids[0]] * config.num_vectors
    return table[list(ids)].detach().float().clone()
