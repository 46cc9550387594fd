"""The SDXL textual-inversion recipe (Gal et al., 2022): new rows of both embedding tables."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from tasks.jobs.data_loaders import PLACEHOLDER
from tasks.jobs.sdxl import SdxlTextualInversionConfig
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.errors import PlaceholderError
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.models import SdxlModels
from worker.trainer.precision import Precision
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.denoising import SdxlText, denoising_losses
from worker.trainer.sdxl.embeddings import (
    FILE_KEYS,
    TableWithNewRows,
    add_rows,
    add_tokens,
    read_embedding,
    tokenizers,
)
from worker.trainer.sdxl.metadata import sdxl_metadata


class SdxlTextualInversion:
    """A frozen SDXL whose text encoders know a new word.

    Args:
        config: The run's.
        models: Frozen, on the device; tokenizers and embedding tables get new rows.
        draws: Decide everything random.

    Raises:
        PlaceholderError: The token, or what it starts from, cannot be used.
    """

    def __init__(
        self, config: SdxlTextualInversionConfig, models: SdxlModels, draws: StatelessRng
    ) -> None:
        if models.text is None:
            raise AssertionError("trained text encoders are not cached")
        self._config = config
        self._unet = models.unet
        self._scheduler = models.scheduler
        self._text = models.text
        device = models.unet.device
        self._inputs = Inputs(device, draws, models.vae_numbers, models.vae, models.text)
        self._precision = Precision(config, device)
        self._tables: dict[str, TableWithNewRows] = {}
        for name, tokenizer in tokenizers(models.text).items():
            start = _start(config, name, models.text)
            add_tokens(tokenizer, config.placeholder_token, len(start))
            self._tables[name] = add_rows(models.text.encoders[name], tokenizer, start)
        self.parameters = {
            f"{name}.placeholder": table.new_rows for name, table in self._tables.items()
        }
        if config.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
            self._unet.train()

    @property
    def scales_loss(self) -> bool:
        """Whether it computes in float16."""
        return self._precision.scales_loss

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass; none for float32."""
        return self._precision.autocast()

    def losses(self, batch: Batch) -> torch.Tensor:
        """The denoising loss of each sample, (B,)."""
        # encode_prompt writes out the tokens of a word of several vectors, as at inference.
        token = self._config.placeholder_token
        text = self._text.encode(
            [caption.replace(PLACEHOLDER, token) for caption in batch.captions]
        )
        gamma = self._config.min_snr_gamma
        return denoising_losses(self._unet, self._scheduler, self._inputs, batch, text, gamma)

    def close(self) -> None:
        """Leave the UNet as it was; the text encoders are not."""
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
    """What a word's rows start from in one encoder, (n, width) float32."""
    if config.initial_embedding_file is not None:
        rows = read_embedding(config.initial_embedding_file)[FILE_KEYS[name]]
        if config.num_vectors not in (1, len(rows)):
            raise PlaceholderError(
                f"{config.initial_embedding_file} holds {len(rows)} vectors, and num_vectors is "
                f"{config.num_vectors}; leave it out"
            )
        return rows.float()
    table: torch.Tensor = text.encoders[name].get_input_embeddings().weight  # type: ignore[operator]
    words = config.initial_phrase or config.initializer_token or ""
    ids: Sequence[int] = tokenizers(text)[name].encode(words, add_special_tokens=False)
    if not ids:
        raise PlaceholderError(f"the base model's tokenizer makes no token of {words!r}")
    if config.initializer_token is not None:
        if len(ids) > 1:
            raise PlaceholderError(
                f"initializer_token {words!r} is {len(ids)} tokens; choose a word that is one, or "
                "use initial_phrase"
            )
        ids = [ids[0]] * config.num_vectors
    return table[list(ids)].detach().float().clone()
