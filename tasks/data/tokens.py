"""Token counts of captions, by the base model's tokenizers. Loads no text encoder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tasks.base_models.files import base_model_folder
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig

# The size of CLIP's position table, which includes the start and end tokens.
_SDXL_TOKENS = 77


@dataclass(frozen=True)
class TokenLimit:
    """The number of tokens that a text encoder reads.

    Attributes:
        encoder: The encoder's name, for messages.
        max_tokens: The number of tokens it reads, including those that the tokenizer adds.
        count: Returns the number of tokens of a text.
        is_last: Whether no other encoder reads the tokens beyond the limit.
    """

    encoder: str
    max_tokens: int
    count: Callable[[str], int]
    is_last: bool


def token_limits(config: PipelineConfig) -> list[TokenLimit]:
    """Return the limits of a job's text encoders.

    Raises:
        BaseModelFilesError: A tokenizer's files are missing.
    """
    if isinstance(config, FluxLoraConfig):
        folder = base_model_folder(config, ("tokenizer", "tokenizer_2"))
        clip, t5 = _clip_counter(folder / "tokenizer"), _t5_counter(folder / "tokenizer_2")
        return [
            TokenLimit("CLIP", config.clip_tokenizer_max_length, clip, is_last=False),
            TokenLimit("T5", config.t5_tokenizer_max_length, t5, is_last=True),
        ]
    folder = base_model_folder(config, ("tokenizer",))
    return [TokenLimit("CLIP", _SDXL_TOKENS, _clip_counter(folder / "tokenizer"), is_last=True)]


def _clip_counter(folder: Path) -> Callable[[str], int]:
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        return lambda text: len(tokenizer.encode(text).ids)
    tokenizer = _clip_tokenizer(folder)
    return lambda text: len(tokenizer.encode(text).ids) + 2  # the start and end tokens


def _clip_tokenizer(folder: Path) -> Tokenizer:
    """Return CLIP's byte-pair encoding (Radford et al., 2021) from its vocabulary and merges."""
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    merges = [
        (pair[0], pair[1]) for line in lines if len(pair := line.split()) == 2 and line[0] != "#"
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _t5_counter(folder: Path) -> Callable[[str], int]:
    if (folder / "spiece.model").is_file():
        pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        return lambda text: len(pieces.encode(text)) + 1  # the end token
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)
