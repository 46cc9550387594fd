"""``prepare`` counts tokens exactly as the encoders' tokenizers do."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer

from tasks.data.tokens import token_limits
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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's tokenizer as it was published: a vocabulary and its merges, no ``tokenizer.json``."""
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    folder.mkdir()
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 512))]
    pairs = [("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>"), ("a", "n")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(p) for p in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    return folder.parent


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_published_clip_files_make_the_same_tokens(published: Path, text: str) -> None:
    config = sdxl_config_of("SDXL_LORA", published)
    [limit] = token_limits(config)
    own = CLIPTokenizer.from_pretrained(published / "tokenizer")
    assert limit.count(text) == len(own(text).input_ids)
