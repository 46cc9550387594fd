import pytest

from console.pages.form.caption_tools import CaptionEdit
from tasks.dataset import MAX_CAPTION_BYTES


@pytest.mark.parametrize(
    ("edit", "caption", "changed"),
    [
        (CaptionEdit(prefix="ohwx,"), "a cat", "ohwx, a cat"),
        (CaptionEdit(prefix=" ohwx, "), "ohwx, a cat", "ohwx, a cat"),
        (CaptionEdit(suffix=", in oil"), "a cat", "a cat, in oil"),
        (CaptionEdit(suffix="in oil"), "a cat", "a cat in oil"),
        (CaptionEdit(suffix="in oil"), "a cat in oil", "a cat in oil"),
        (CaptionEdit(find="cat", replacement="dog"), "a cat, cat", "a dog, dog"),
        (CaptionEdit(find="Cat", replacement="dog"), "a cat", "a cat"),
        (CaptionEdit(find="a cat"), "a cat", ""),
        (CaptionEdit(find="cat", replacement="dog", prefix="my"), "cat", "my dog"),
        (CaptionEdit(prefix="ohwx", suffix="."), "", ""),
        (CaptionEdit(), "a cat", "a cat"),
    ],
)
def test_a_change_of_captions(edit: CaptionEdit, caption: str, changed: str) -> None:
    assert edit.apply(caption) == changed
    if changed:
        again = CaptionEdit(prefix=edit.prefix, suffix=edit.suffix)
        assert again.apply(changed) == changed


def test_a_change_makes_no_text_that_is_too_long_to_be_kept() -> None:
    edit = CaptionEdit(find="a", replacement="bcd" * 300)
    changed = edit.apply("a" * MAX_CAPTION_BYTES)
    assert changed[:MAX_CAPTION_BYTES] == ("bcd" * 30_000)[:MAX_CAPTION_BYTES]
    assert len(changed) < 3 * MAX_CAPTION_BYTES
    assert CaptionEdit(find="a").apply("a" * MAX_CAPTION_BYTES) == ""
