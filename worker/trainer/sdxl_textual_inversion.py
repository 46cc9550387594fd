"""The SDXL textual-inversion recipe (Gal et al., 2022): new rows of both embedding tables."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tasks.jobs.data import PLACE
from tasks.jobs.sdxl import SdxlTextualInversionConfig
from worker.trainer.base_model import existing_file
from worker.trainer.batches import Batch
from worker.trainer.draws import Draws
from worker.trainer.errors import BaseModelFilesError, PlaceholderError
from worker.trainer.inputs import Inputs
from worker.trainer.metadata import sdxl_metadata
from worker.trainer.models import SdxlModels
from worker.trainer.precision import Precision
from worker.trainer.safetensors_file import write_safetensors
from worker.trainer.sdxl import SdxlText, denoising_losses

# The encoders' names in the file that InvokeAI, ComfyUI and diffusers' examples read.
FILE_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


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
        self, config: SdxlTextualInversionConfig, models: SdxlModels, draws: Draws
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
        self._tables: dict[str, _TableWithNewRows] = {}
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
        text = self._text.encode([caption.replace(PLACE, token) for caption in batch.captions])
        gamma = self._config.min_snr_gamma
        return denoising_losses(self._unet, self._scheduler, self._inputs, batch, text, gamma)

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


class _TableWithNewRows(torch.nn.Module):
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
    if tokenizer.add_tokens(names) != len(names):
        raise PlaceholderError(
            f"the base model's tokenizer has {token!r} already; choose another placeholder_token"
        )


def add_rows(encoder: Any, tokenizer: Any, rows: torch.Tensor) -> _TableWithNewRows:
    """Give a text encoder rows (n, width) for a tokenizer's newest tokens."""
    table = _TableWithNewRows(encoder.get_input_embeddings(), len(tokenizer) - len(rows), rows)
    encoder.set_input_embeddings(table)
    # Some configs say 2 for the end token, by which CLIP pools at the highest token id: that would
    # be the new word.
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id
    return table


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
