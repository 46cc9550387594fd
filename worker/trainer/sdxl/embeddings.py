"""New words for SDXL's text encoders: rows behind the embedding tables, and their files."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tasks.base_models.files import existing_file
from tasks.errors import BaseModelFilesError
from worker.trainer.errors import PlaceholderError
from worker.trainer.sdxl.denoising import SdxlText

# The encoders' names in the file that InvokeAI, ComfyUI and diffusers' examples read.
FILE_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class TableWithNewRows(torch.nn.Module):
    """A frozen embedding table with trained rows behind it.

    Args:
        table: (V, width), frozen.
        first: The token id of the first new row; ids from there on are new.
        start: What the new rows start from, (n, width) float32.
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
        """Embeddings (B, tokens, width) of ids (B, tokens)."""
        is_new = ids >= self.first  # (B, tokens)
        known = self.table(torch.where(is_new, 0, ids))
        new = torch.nn.functional.embedding((ids - self.first).clamp(min=0), self.new_rows)
        return torch.where(is_new[..., None], new.to(known.dtype), known)


def tokenizers(text: SdxlText) -> dict[str, Any]:
    """Both tokenizers by their encoders' names."""
    return {"text_encoder": text.pipeline.tokenizer, "text_encoder_2": text.pipeline.tokenizer_2}


def add_tokens(tokenizer: Any, token: str, vectors: int) -> None:
    """Teach a tokenizer a word of so many tokens: ``token``, ``token_1``, ...

    Raises:
        PlaceholderError: It has one of them.
    """
    names = [token, *(f"{token}_{number}" for number in range(1, vectors))]
    known = tokenizer.get_vocab()
    if any(name in known for name in names) or tokenizer.add_tokens(names) != len(names):
        raise PlaceholderError(
            f"the base model's tokenizer has {token!r} already; choose another placeholder_token"
        )


def add_rows(encoder: Any, tokenizer: Any, rows: torch.Tensor) -> TableWithNewRows:
    """Give a text encoder rows (n, width) for a tokenizer's newest tokens."""
    table = TableWithNewRows(encoder.get_input_embeddings(), len(tokenizer) - len(rows), rows)
    encoder.set_input_embeddings(table)
    # Some configs say 2 for the end token, by which CLIP pools at the highest token id: that would
    # be the new word.
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
    return table


def add_embeddings(text: SdxlText, files: Mapping[str, str]) -> None:
    """Teach both encoders the words of textual-inversion files, by token.

    Raises:
        BaseModelFilesError: A file is no such file.
        PlaceholderError: A tokenizer has one of the tokens.
    """
    for token, path in files.items():
        rows = read_embedding(path)
        for name, tokenizer in tokenizers(text).items():
            new = rows[FILE_KEYS[name]].float()
            add_tokens(tokenizer, token, len(new))
            add_rows(text.encoders[name], tokenizer, new).requires_grad_(False)


def read_embedding(path: str) -> dict[str, torch.Tensor]:
    """A textual-inversion file's ``clip_l`` (n, 768) and ``clip_g`` (n, 1280).

    Raises:
        BaseModelFilesError: It is no such file.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(existing_file(path))
    except (OSError, SafetensorError) as error:
        raise BaseModelFilesError(path, str(error).partition("\n")[0]) from error
    keys = set(FILE_KEYS.values())
    if not keys <= set(tensors) or any(tensors[key].ndim != 2 for key in keys):
        raise BaseModelFilesError(path, "it does not hold clip_l and clip_g, rows of vectors")
    return tensors
