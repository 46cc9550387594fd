"""How many tokens a caption has, by the base model's own tokenizers. Loads no encoders."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tasks.base_models.files import base_model_folder
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig

# CLIP's, with its start and end.
_SDXL_TOKENS = 77


@dataclass(frozen=True)
class TokenLimit:
    """A text encoder's limit.

    Attributes:
        encoder: Its name, for people.
        most: Tokens that it reads, those that the tokenizer adds among them.
        count: A text's tokens.
        is_all: Whether what it does not read is seen by no other encoder.
    """

    encoder: str
    most: int
    count: Callable[[str], int]
    is_all: bool


def token_limits(config: PipelineConfig) -> list[TokenLimit]:
    """The limits that a job's captions meet.

    Raises:
        BaseModelFilesError: The tokenizers are not there.
    """
    if isinstance(config, FluxLoraConfig):
        folder = base_model_folder(config, ("tokenizer", "tokenizer_2"))
        clip, t5 = _clip_counter(folder / "tokenizer"), _t5_counter(folder / "tokenizer_2")
        return [
            TokenLimit("CLIP", config.clip_tokenizer_max_length, clip, is_all=False),
            TokenLimit("T5", config.t5_tokenizer_max_length, t5, is_all=True),
        ]
    folder = base_model_folder(config, ("tokenizer",))
    return [TokenLimit("CLIP", _SDXL_TOKENS, _clip_counter(folder / "tokenizer"), is_all=True)]


def _clip_counter(folder: Path) -> Callable[[str], int]:
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        return lambda text: len(tokenizer.encode(text).ids)
    tokenizer = _clip_tokenizer(folder)
    return lambda text: len(tokenizer.encode(text).ids) + 2  # its start and end


def _clip_tokenizer(folder: Path) -> Tokenizer:
    """CLIP's byte-pair encoding (Radford et al., 2021) from the two files it was published as."""
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
        return lambda text: len(pieces.encode(text)) + 1  # its end
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)
