"""New words for SDXL's text encoders: rows behind the embedding tables, and their files."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tasks.base_models.files import existing_file
from tasks.errors import BaseModelFilesError
from worker.trainer.errors import PlaceholderError
from worker.trainer.sdxl.models import SdxlText

FILE_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""The encoders' names in the files that InvokeAI, ComfyUI and diffusers' examples read."""


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
