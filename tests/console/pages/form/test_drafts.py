from pathlib import Path

import pytest

from console.pages.form.draft import Draft
from console.pages.form.drafts import Drafts
from console.pages.form.image_collection import NotAddedError
from tasks.api_keys import Caller

ACME, ZOO, OTHER_KEY = Caller("a", "acme"), Caller("z", "zoo"), Caller("b", "acme")


def add(drafts: Drafts, caller: Caller, draft_id: str, file: Path, length: int) -> None:
    file.write_bytes(b"x" * length)
    opened = drafts.find(caller, draft_id)
    assert opened is not None
    opened.collection.add("cat.png", file)


def new(drafts: Drafts, caller: Caller) -> str:
    return drafts.open(caller, Draft("FLUX_LORA", "flux_lora_1x40gb"))


def test_forms_of_one_account_close_no_form_of_another(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts", 1000)
    of_zoo = new(drafts, ZOO)
    add(drafts, ZOO, of_zoo, tmp_path / "file", 10)
    first, *_, last = (new(drafts, ACME) for _ in range(200))
    kept = drafts.find(ZOO, of_zoo)
    assert kept is not None
    assert [image.name for image in kept.collection.images()] == ["cat.png"]
    assert drafts.find(ACME, first) is None
    assert drafts.find(ACME, last) is not None


def test_a_form_that_makes_room_leaves_no_file(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts", 1000)
    add(drafts, ACME, new(drafts, ACME), tmp_path / "file", 10)
    for _ in range(20):
        new(drafts, ACME)
    assert list((tmp_path / "drafts").iterdir()) == []


def test_images_of_all_forms_of_an_account_are_limited(tmp_path: Path) -> None:
    drafts, file = Drafts(tmp_path / "drafts", 1000), tmp_path / "file"
    for caller, length in ((ACME, 900), (OTHER_KEY, 900), (ACME, 200)):
        add(drafts, caller, new(drafts, caller), file, length)
    with pytest.raises(NotAddedError, match="no room beside the images of your other open forms"):
        add(drafts, ACME, new(drafts, ACME), file, 1)
    add(drafts, ZOO, new(drafts, ZOO), file, 1000)


def test_only_its_caller_finds_a_form(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts", 1000)
    draft_id = new(drafts, ACME)
    assert drafts.find(ACME, draft_id) is not None
    assert drafts.find(OTHER_KEY, draft_id) is None
    drafts.close(draft_id)
    assert drafts.find(ACME, draft_id) is None
