"""Token counts of captions, by the base model's tokenizers. Loads no text encoder."""

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tasks.base_models.files import base_model_folder
from tasks.errors import BaseModelFilesError
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig

# The size of CLIP's position table, which includes the start and end tokens.
_SDXL_TOKENS = 77
_T5_SENTINELS = 100
_TOKEN_FIELDS = {"single_word", "lstrip", "rstrip", "normalized"}


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
        clip = _counter(_clip_counter, folder / "tokenizer")
        t5 = _counter(_t5_counter, folder / "tokenizer_2")
        return [
            TokenLimit("CLIP", config.clip_tokenizer_max_length, clip, is_last=False),
            TokenLimit("T5", config.t5_tokenizer_max_length, t5, is_last=True),
        ]
    folder = base_model_folder(config, ("tokenizer",))
    # The second one pads with "!", which it counts one by one.
    folders = [folder / "tokenizer", folder / "tokenizer_2"]
    counters = [_counter(_clip_counter, each) for each in folders if each.is_dir()]
    return [
        TokenLimit(
            *("CLIP", _SDXL_TOKENS),
            lambda text: max(count(text) for count in counters),
            is_last=True,
        )
    ]


def _counter(make: Callable[[Path], Callable[[str], int]], folder: Path) -> Callable[[str], int]:
    try:
        return make(folder)
    except Exception as error:  # tokenizers raises nothing more special
        problem = f"its {folder.name} cannot be read: {error}"
        raise BaseModelFilesError(str(folder.parent), problem) from error


def _clip_counter(folder: Path) -> Callable[[str], int]:
    """Return the counter of CLIP's byte-pair encoding (Radford et al., 2021)."""
    model = _json(folder / "tokenizer.json").get("model")
    if model is None:
        # The first line of merges.txt is a comment; others that begin with "#" are merges.
        files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
        vocabulary, merges = models.BPE.read_file(*files)
    else:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        vocabulary, merges = model["vocab"], [(left, right) for left, right in pairs]
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
    special = r"<\|startoftext\|>|<\|endoftext\|>"
    words = Regex(special + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_tokens(_added_tokens(folder, ["<|startoftext|>", "<|endoftext|>"]))
    return lambda text: len(tokenizer.encode(text).ids) + 2  # the start and end tokens


def _t5_counter(folder: Path) -> Callable[[str], int]:
    """Return the counter of T5's unigram pieces."""
    document = _json(folder / "tokenizer.json")
    if "model" in document:
        pieces = [(piece, score) for piece, score in document["model"]["vocab"]]
        normalizer = document.get("normalizer") or {}
        maps = (
            it.get("precompiled_charsmap") for it in normalizer.get("normalizers", [normalizer])
        )
        characters = b64decode(next(filter(None, maps), ""))
    else:
        path = str(folder / "spiece.model")
        processor = SentencePieceProcessor(model_file=path)
        numbers = range(processor.get_piece_size())
        pieces = [(processor.id_to_piece(it), processor.get_score(it)) for it in numbers]
        characters = _field(_field(Path(path).read_bytes(), 3), 2)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    if characters:
        tokenizer.normalizer = normalizers.Precompiled(characters)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
        ]
    )
    count = _json(folder / "tokenizer_config.json").get("extra_ids", _T5_SENTINELS)
    sentinels = [f"<extra_id_{number}>" for number in range(count)]
    tokenizer.add_tokens(_added_tokens(folder, ["</s>", "<unk>", "<pad>", *sentinels]))
    return lambda text: len(tokenizer.encode(text).ids) + 1  # the end token


def _added_tokens(folder: Path, usual: list[str]) -> list[AddedToken]:
    """Return the tokens that are found in a text as they are written.

    Args:
        folder: The tokenizer's files. What they list last has precedence.
        usual: Those that the tokenizer has anyway.
    """
    config = _json(folder / "tokenizer_config.json")
    named = _json(folder / "special_tokens_map.json") | config
    tokens: list[tuple[str | dict[str, Any], bool]] = [(token, True) for token in usual]
    for name in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token"):
        tokens += [(named[name], True)] if named.get(name) else []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens += [(token, True) for token in named.get(name) or ()]
    added = config.get("added_tokens_decoder", {}).values()
    added = added or _json(folder / "tokenizer.json").get("added_tokens", ())
    tokens += [(token, False) for token in (*added, *_json(folder / "added_tokens.json"))]
    found = {}
    for token, is_special in tokens:
        fields = {"content": token} if isinstance(token, str) else token
        content = fields["content"]
        special = is_special or fields.get("special", content in found)
        fields = {name: fields[name] for name in _TOKEN_FIELDS & fields.keys()}
        found[content] = AddedToken(
            content, special=special, **{"normalized": not special} | fields
        )
    return list(found.values())


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; an empty one without the file."""
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return document


def _field(message: bytes, number: int) -> bytes:
    """Return the bytes in a field of a protocol buffer; none if the field is missing."""
    at, found = 0, b""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        length = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if length == 0:
            varint()
        elif length is None:
            length = varint()
            if key >> 3 == number:
                found = message[at : at + length]
        at += length
    return found
