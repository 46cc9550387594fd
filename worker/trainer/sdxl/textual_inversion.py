"""Textual inversion of SDXL (Gal et al., 2022): new words for both text encoders, and their recipe.

A word is rows behind the embedding tables of both encoders. The recipe trains the rows of one new
word; the words of other files are frozen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tasks.base_models.files import existing_file
from tasks.errors import BaseModelFilesError
from tasks.jobs.data_loaders import PLACEHOLDER
from tasks.jobs.sdxl import SdxlTextualInversionConfig
from worker.trainer.compute.gradient_checkpointing import checkpoint_blocks
from worker.trainer.compute.norm_casts import cast_norms_once
from worker.trainer.data.batches import Batch
from worker.trainer.data.inputs import Inputs
from worker.trainer.errors import PlaceholderError
from worker.trainer.export.metadata import MODEL_DIGESTS
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.sdxl.denoising import denoising_losses, unet_draws
from worker.trainer.sdxl.export import sdxl_entries
from worker.trainer.sdxl.models import SdxlModels, SdxlText, unet_blocks
from worker.trainer.training_type import Precision

FILE_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""The encoders' names in the files that InvokeAI, ComfyUI and diffusers' examples read."""


class SdxlTextualInversion:
    """A frozen SDXL whose text encoders learn a new word.

    Args:
        config: The run's config.
        models: The frozen models, on the device; tokenizers and embedding tables get new rows.

    Raises:
        PlaceholderError: The token, or its initial embedding, cannot be used.
    """

    ema_decay = None

    def __init__(self, config: SdxlTextualInversionConfig, models: SdxlModels) -> None:
        if models.text is None:
            raise AssertionError("trained text encoders are not cached")
        self._config = config
        self._unet = models.denoiser
        self._scheduler = models.scheduler
        self._text = models.text
        device = models.denoiser.device
        self._inputs = Inputs(device, models.vae_scaling, models.vae, models.text)
        self.draws = unet_draws(self._unet)
        self.precision = Precision(config, device)
        self._tables: dict[str, TableWithNewRows] = {}
        for name, tokenizer in models.text.tokenizers.items():
            start = _start(config, name, models.text)
            add_tokens(tokenizer, config.placeholder_token, len(start))
            self._tables[name] = add_rows(models.text.encoders[name], tokenizer, start)
        self.parameters = {
            f"{name}.placeholder": table.new_rows for name, table in self._tables.items()
        }
        checkpoint_blocks(self._unet, unet_blocks(self._unet), config)
        self._restore = cast_norms_once(self._unet)

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
        for restore in self._restore:
            restore()
        self._unet.disable_gradient_checkpointing()

    def write(
        self,
        folder: Path,
        name: str,
        metadata: Mapping[str, str],
        weights: Mapping[str, torch.Tensor],
    ) -> list[Path]:
        """Write the embedding, one file of ``clip_l`` (n, 768) and ``clip_g`` (n, 1280)."""
        path = folder / f"{name}.safetensors"
        tensors = {key: weights[f"{model}.placeholder"] for model, key in FILE_KEYS.items()}
        entries = {**metadata, **sdxl_entries(self._scheduler, "textual-inversion")}
        write_safetensors(path, tensors, entries, digests=MODEL_DIGESTS)
        return [path]


class TableWithNewRows(torch.nn.Module):
    """A frozen embedding table with trained rows behind it.

    Args:
        table: (V, width), frozen.
        first: The token id of the first new row; ids from there on are new.
        start: The initial values of the new rows, (n, width) float32.
    """

    def __init__(self, table: torch.nn.Embedding, first: int, start: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.first = first
        self.new_rows = torch.nn.Parameter(start.to(table.weight.device))

    @property
    def weight(self) -> torch.Tensor:
        """The frozen rows; transformers asks for their dtype."""
        return self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings, (B, tokens, width), of ids, (B, tokens)."""
        is_new = ids >= self.first  # (B, tokens)
        known = self.table(torch.where(is_new, 0, ids))  # (B, tokens, width)
        new = torch.nn.functional.embedding((ids - self.first).clamp(min=0), self.new_rows)
        return torch.where(is_new[..., None], new.to(known.dtype), known)


def add_tokens(tokenizer: Any, token: str, vectors: int) -> None:
    """Add a word of N tokens to a tokenizer: ``token``, ``token_1``, ...

    Raises:
        PlaceholderError: The tokenizer has one of them.
    """
    names = [token, *(f"{token}_{number}" for number in range(1, vectors))]
    known = tokenizer.get_vocab()
    if any(name in known for name in names) or tokenizer.add_tokens(names) != len(names):
        raise PlaceholderError(
            f"the base model's tokenizer has {token!r} already; choose another placeholder_token"
        )


def add_rows(encoder: Any, tokenizer: Any, rows: torch.Tensor) -> TableWithNewRows:
    """Add rows, (n, width), for the tokenizer's newest tokens to a text encoder."""
    table = TableWithNewRows(encoder.get_input_embeddings(), len(tokenizer) - len(rows), rows)
    encoder.set_input_embeddings(table)
    # With 2 as the end token, as in some configs, CLIP pools at the highest token id: that would be
    # the new word.
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
    return table


def add_embeddings(text: SdxlText, files: Mapping[str, str]) -> None:
    """Add the words of textual-inversion files to both encoders, frozen.

    Args:
        text: The encoders.
        files: The files by token.

    Raises:
        BaseModelFilesError: A file holds no embedding.
        PlaceholderError: A tokenizer has one of the tokens.
    """
    for token, path in files.items():
        rows = read_embedding(path)
        for name, tokenizer in text.tokenizers.items():
            new = rows[FILE_KEYS[name]].float()
            add_tokens(tokenizer, token, len(new))
            add_rows(text.encoders[name], tokenizer, new).requires_grad_(False)


def read_embedding(path: str) -> dict[str, torch.Tensor]:
    """Read a textual-inversion file: ``clip_l`` (n, 768) and ``clip_g`` (n, 1280).

    Raises:
        BaseModelFilesError: The file holds no embedding.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(existing_file(path))
    except (OSError, SafetensorError) as error:
        raise BaseModelFilesError(path, str(error).partition("\n")[0]) from error
    keys = set(FILE_KEYS.values())
    if not keys <= set(tensors) or any(tensors[key].ndim != 2 for key in keys):
        raise BaseModelFilesError(path, "it does not hold clip_l and clip_g, rows of vectors")
    return tensors


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
