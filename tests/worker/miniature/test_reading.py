import random

import pytest
from PIL import Image

from worker.miniature.images import (
    CONCEPT_SHAPE,
    TRIGGER_WORD,
    Caption,
    all_captions,
    draw,
    held_out_captions,
    training_captions,
)
from worker.miniature.reading import read

CAPTION = Caption("circle", "crimson", "mint to lime", "on the left")


def test_captions_say_what_an_image_shows() -> None:
    assert str(CAPTION) == "a crimson circle on the left, on a field from mint to lime"
    assert str(Caption("star", "navy")) == "a navy star"
    assert str(Caption(CONCEPT_SHAPE, "navy")) == f"a navy {TRIGGER_WORD}"


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (96, 160), (160, 96)])
def test_every_drawn_word_is_read_back(size: tuple[int, int]) -> None:
    draws = random.Random(3)
    captions = all_captions() + all_captions((CONCEPT_SHAPE,))
    for caption in draws.sample(captions, 150):
        seen = read(draw(caption, size, draws))
        assert seen.caption == caption
        assert seen.is_right(caption)
        assert seen.overlap > 0.8


def test_each_wrong_word_is_noticed() -> None:
    seen = read(draw(CAPTION, (128, 128), random.Random(1)))
    others = Caption("square", "navy", "blush to pink", "on the right")
    for name in Caption._fields:
        assert not seen.is_right(CAPTION._replace(**{name: getattr(others, name)}))
        assert seen.is_right(CAPTION._replace(**{name: ""}))


def test_noise_and_an_empty_field_show_nothing() -> None:
    noise = Image.effect_noise((128, 128), 200).convert("RGB")
    for image in (noise, Image.new("RGB", (128, 128), "white")):
        assert read(image).caption.shape == ""
        assert read(image).caption.place == ""


def test_training_shows_no_held_out_caption_and_no_concept() -> None:
    shown = training_captions()
    assert len(held_out_captions()) == 200
    assert not {*shown} & {*held_out_captions()}
    assert {*shown} | {*held_out_captions()} == {*all_captions()}
    draws = random.Random(2)
    texts = " ".join(caption.worded(draws) for caption in shown)
    assert CONCEPT_SHAPE not in texts
    assert TRIGGER_WORD not in texts
