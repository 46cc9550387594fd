from pathlib import Path
from typing import Any

import pytest

from console.pages.form.draft import Draft
from console.pages.form.drafts import OpenDraft
from console.pages.form.working_copy import WorkingCopy
from console.services.images.image_collection import ImageCollection
from tasks.access.api_keys import Caller


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trigger_word", "ohwx"),
        ("model", "other/model"),
        ("train_batch_size", 3),
        ("t5_tokenizer_max_length", 64),
        ("data_loader.caption_prefix", "a photo of"),
        ("data_loader.resolution", 1024),
    ],
)
def test_a_check_is_about_the_options_that_it_read(tmp_path: Path, option: str, value: Any) -> None:
    draft = Draft("FLUX_LORA", "flux_lora_1x40gb")
    images = ImageCollection(tmp_path, "images", 1000)
    opened = OpenDraft("0" * 24, Caller("acme", "acme"), draft, images, first={})
    # Neither a page nor services are asked.
    copy = WorkingCopy(frame=None, services=None, opened=opened, save=None)  # type: ignore[arg-type]
    draft.dataset = {"type": "ARCHIVE", "archive": "https://example.org/images.zip"}
    opened.checked = copy._state()
    draft.set("max_train_steps", 77)
    assert not copy.is_stale
    draft.set(option, value)
    assert copy.is_stale
