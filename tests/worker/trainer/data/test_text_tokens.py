"""``prepare`` counts tokens exactly as the encoders' tokenizers do."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from tasks.data.tokens import token_limits
from tasks.errors import BaseModelFilesError
from tests.worker.trainer.runs import config_of, sdxl_config_of

TEXTS = (
    "",
    "a photo of a cat",
    "A  PHOTO\tof the\nred square, it's 42!",
    "dräi Häuser und ein 漢字 with 🐈",
    "the " * 200,
)


def test_token_counts_equal_the_tokenizers(tiny_flux: Path, tiny_sdxl: Path) -> None:
    clip, t5 = token_limits(config_of(tiny_flux, t5_tokenizer_max_length=64))
    assert (clip.max_tokens, t5.max_tokens) == (77, 64)
    own_clip = CLIPTokenizer.from_pretrained(tiny_flux / "tokenizer")
    own_t5 = T5Tokenizer.from_pretrained(tiny_flux / "tokenizer_2")
    for text in TEXTS:
        assert clip.count(text) == len(own_clip(text).input_ids), text
        assert t5.count(text) == len(own_t5(text).input_ids), text
    [sdxl] = token_limits(sdxl_config_of("SDXL_LORA", tiny_sdxl))
    assert sdxl.count("a photo of a cat") == len(own_clip("a photo of a cat").input_ids)


# How the tokenizers of SDXL were published: the second one pads with "!".
TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
START, END = (
    {"__type": "AddedToken", "content": f"<|{it}oftext|>", **TOKEN} for it in ("start", "end")
)
NAMED = {"bos_token": START, "eos_token": END, "unk_token": END}
CONFIGS: dict[str, dict[str, Any]] = {
    "bare": {},
    "first": {**NAMED, "pad_token": "<|endoftext|>"},
    "second": {**NAMED, "pad_token": "!"},
    "added": {
        "pad_token": "!",
        "added_tokens_decoder": {
            "0": {"content": "!", **TOKEN, "normalized": False, "special": True},
            "9": {"content": "<cat-toy>", **TOKEN, "special": False},
        },
    },
}
PARTS = (
    *("#", "##", "...", "…", "@", ":", "!", "!!", "?", "'s", "'RE", "-", "_", "<", ">", "|"),
    *("the", "The", "cat", "an", "a", "1", "42", "ä", "a\u0308", "é", "ﬁ", "Ⅳ", "½", "漢字", "İ"),
    *(" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\ufeff", "\u200e", "\u0301", "🐈\u200d⬛", "▁"),
    *("<|endoftext|>", "<|ENDOFTEXT|>", "<|startoftext|>", "</s>", "<pad>", "<extra_id_9>"),
    *("<cat-toy>", "</w>"),
)


def generated_texts(count: int) -> list[str]:
    """Texts of parts that tokenizers treat in a special way."""
    random = Random(0)
    gaps = [random.choice(("", " ")) for _ in range(count)]
    return [gap.join(random.choices(PARTS, k=random.randrange(14))) for gap in gaps]


def lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts).input_ids]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's tokenizer as it was published: a vocabulary and its merges, no ``tokenizer.json``."""
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    folder.mkdir()
    letters = sorted(ByteLevel.alphabet())
    pairs = [("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>"), ("a", "n")]
    # The published merges have six of these.
    pairs += [
        ("#", "#</w>"),
        ("#", ":</w>"),
        ("#", "@</w>"),
        (".", "."),
        ("..", ".</w>"),
        ("!", "!</w>"),
    ]
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), *map("".join, pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    return folder.parent


@pytest.mark.parametrize("config", CONFIGS)
def test_clip_counts_are_those_of_its_tokenizer(
    published: Path, tmp_path: Path, config: str
) -> None:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIGS[config]), "utf-8")
    own = CLIPTokenizer.from_pretrained(folder)
    texts = ["##", "a # b ##", *generated_texts(2000)]
    assert lengths(own, ["##"]) == [3]
    [limit] = token_limits(sdxl_config_of("SDXL_LORA", tmp_path))
    assert [limit.count(text) for text in texts] == lengths(own, texts)
    own.save_pretrained(folder)  # as tokenizer.json
    [limit] = token_limits(sdxl_config_of("SDXL_LORA", tmp_path))
    assert [limit.count(text) for text in texts] == lengths(own, texts)


def test_sdxl_counts_with_the_tokenizer_that_needs_more(published: Path, tmp_path: Path) -> None:
    for part, config in (("tokenizer", "first"), ("tokenizer_2", "second")):
        shutil.copytree(published / "tokenizer", tmp_path / part)
        text = json.dumps(CONFIGS[config])
        (tmp_path / part / "tokenizer_config.json").write_text(text, "utf-8")
    [limit] = token_limits(sdxl_config_of("SDXL_LORA", tmp_path))
    assert limit.count("a cat!!!") == 7  # start, "a", "cat", three times "!", end
    assert limit.count("##") == 3


@pytest.mark.parametrize("files", ["spiece.model", "tokenizer.json"])
def test_t5_counts_are_those_of_its_tokenizer(tiny_flux: Path, tmp_path: Path, files: str) -> None:
    shutil.copytree(tiny_flux, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "tokenizer_2"
    shutil.rmtree(folder)
    folder.mkdir()
    sentences = ["a photo of a cat on the mat", "the red square, it's 42!", "ein Bild # ## ..."]
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=32,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    own = T5Tokenizer.from_pretrained(folder)
    if files == "tokenizer.json":
        own.save_pretrained(folder)
        (folder / "spiece.model").unlink(missing_ok=True)
        own = T5Tokenizer.from_pretrained(folder)
    _, t5 = token_limits(config_of(tmp_path))
    texts = generated_texts(2000)
    assert [t5.count(text) for text in texts] == lengths(own, texts)


def test_a_damaged_tokenizer_is_a_problem_of_the_model(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    for damage in ("{", "[]", '{"model": {}}', '{"model": {"vocab": 1, "merges": 2}}'):
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(damage, "utf-8")
        with pytest.raises(BaseModelFilesError, match="its tokenizer cannot be read"):
            token_limits(sdxl_config_of("SDXL_LORA", tmp_path))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_published_clip_files_make_the_same_tokens(published: Path, text: str) -> None:
    config = sdxl_config_of("SDXL_LORA", published)
    [limit] = token_limits(config)
    own = CLIPTokenizer.from_pretrained(published / "tokenizer")
    assert limit.count(text) == len(own(text).input_ids)
