from typing import Any

import pytest

from tasks.dataset import Sample
from tasks.errors import InvalidJobError
from tasks.jobs.job import parse_job
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.trigger_word import MAX_TRIGGER_WORD, contains_word, with_trigger_word
from tests.tasks.jobs.test_flux_lora import with_values
from tests.worker.trainer.runs_options import SDXL_OPTIONS

DREAMBOOTH = {
    "type": "DREAMBOOTH_SD_DATA_LOADER",
    "instance_caption": "a photo of a cat",
    "instance_dataset": {"dataset_dir": "/cats"},
    "class_caption": "a photo of a dog",
    "class_dataset": {"dataset_dir": "/dogs"},
}


def config_with(**values: Any) -> PipelineConfig:
    return parse_job(with_values(**values)).training


def sample(caption: str = "", part: int = 0) -> Sample:
    return Sample(image="a", width=64, height=64, caption=caption, source="a.png", part=part)


@pytest.mark.parametrize(
    ("word", "text", "is_there"),
    [
        ("ohwx", "a photo of ohwx", True),
        ("ohwx", "OHWX, red", True),
        ("OHWX", "ohwx's hat", True),
        ("ohwx", "ohwx-like", True),
        ("cat", "a category", False),
        ("cat", "a bobcat", False),
        ("cat", "a cat_2", False),
        ("cat", "a cat2", False),
        ("cat", "bobcat and cat", True),
        ("cat", "", False),
        ("ohwx cat", "an Ohwx  Cat", True),
        ("ohwx cat", "an ohwx\ncat sits", True),
        ("ohwx cat", "ohwx catalog", False),
        ("ohwx cat", "cat ohwx", False),
        ("straße", "EINE STRASSE", True),
        ("café", "the cafe\u0301 here", True),
        ("cafe", "the cafe\u0301 here", False),
        ("क", "की", False),
        ("<lamp>", "a<lamp>b", True),
        ("a.b", "aXb", False),
    ],
)
def test_whole_words_are_found_in_any_case(word: str, text: str, is_there: bool) -> None:
    assert contains_word(text, word) is is_there


def test_long_captions_take_little_time() -> None:
    assert not contains_word("aaaa" * 16_000, "a" * 99)


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        ("ohwx", "a red cat", "ohwx, a red cat"),
        ("ohwx", "a red OHWX", "a red OHWX"),
        ("ohwx", "", "ohwx"),
        (None, "a red cat", "a red cat"),
    ],
)
def test_word_precedes_texts_without_it(word: str | None, text: str, expected: str) -> None:
    assert with_trigger_word(word, text) == expected


def test_word_precedes_the_prefix_and_no_dropped_caption() -> None:
    config = config_with(
        trigger_word="ohwx",
        data_loader__caption_prefix="photo of",
        data_loader__caption_dropout=0.5,
    )
    assert config.caption(sample("a cat"), (0.9,)) == "ohwx, photo of a cat"
    assert config.caption(sample("a cat"), (0.1,)) == ""
    named = config_with(trigger_word="ohwx", data_loader__caption_prefix="photo of ohwx,")
    assert named.caption(sample("a cat"), ()) == "photo of ohwx, a cat"
    assert config.trigger_phrase == "ohwx"


def test_dreambooth_gives_the_word_to_its_instance_only() -> None:
    options = {**SDXL_OPTIONS["SDXL_LORA"], "data_loader": DREAMBOOTH, "trigger_word": "ohwx"}
    config = parse_job({"training": options}).training
    assert config.caption(sample(), ()) == "ohwx, a photo of a cat"
    assert config.caption(sample(part=1), ()) == "a photo of a dog"


def test_sample_prompts_have_the_word() -> None:
    config = config_with(
        trigger_word="ohwx", validation_prompts=["a cat", "an Ohwx"], validate_every_n_steps=5
    )
    assert config.sample_prompts == ("ohwx, a cat", "an Ohwx")
    assert config.validation_prompts == ("a cat", "an Ohwx")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "must not be empty"),
        (" ohwx", "must have no space at its ends"),
        ("ohwx ", "must have no space at its ends"),
        ("ohwx  cat", "single ones between its words"),
        ("ohwx\ncat", "must be one line of printable characters"),
        ("ohwx\u200b", "must be one line of printable characters"),
        ("\u202eohwx", "must be one line of printable characters"),
        ("!?", "must have a letter or a digit"),
        ("o" * (MAX_TRIGGER_WORD + 1), f"must have at most {MAX_TRIGGER_WORD} characters"),
        (7, "must be text"),
    ],
)
def test_wrong_words_are_refused(word: object, message: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        config_with(trigger_word=word)
    [problem] = refused.value.problems
    assert problem.location == "training.trigger_word"
    assert message in problem.message


def test_textual_inversion_names_its_own_word() -> None:
    options = {**SDXL_OPTIONS["SDXL_TEXTUAL_INVERSION"], "trigger_word": "ohwx"}
    with pytest.raises(InvalidJobError) as refused:
        parse_job({"training": options})
    [problem] = refused.value.problems
    assert problem.location == "training.trigger_word"
    assert problem.message == (
        "is not an option here: the new word, placeholder_token, is the trigger word of a textual "
        "inversion"
    )
