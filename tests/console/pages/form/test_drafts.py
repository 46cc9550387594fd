import os
from pathlib import Path

import pytest
from redis import Redis

from console.errors import TooLargeError
from console.pages.form.draft import Draft
from console.pages.form.drafts import Drafts
from console.services.images.image_collection import NewFile
from tasks.access.api_keys import Caller

ACME, ZOO, OTHER_KEY = Caller("a", "acme"), Caller("z", "zoo"), Caller("b", "acme")


def add(drafts: Drafts, caller: Caller, draft_id: str, file: Path, length: int) -> list[str]:
    file.write_bytes(b"x" * length)
    opened = drafts.find(caller, draft_id)
    assert opened is not None
    return opened.collection.add([NewFile("cat.png", file)])


def new(drafts: Drafts, caller: Caller) -> str:
    return drafts.open(caller, Draft("FLUX_LORA", "flux_lora_1x40gb"))


def test_forms_of_one_account_close_no_form_of_another(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    of_zoo = new(drafts, ZOO)
    add(drafts, ZOO, of_zoo, tmp_path / "file", 10)
    first, *_, last = (new(drafts, ACME) for _ in range(30))
    kept = drafts.find(ZOO, of_zoo)
    assert kept is not None
    assert [image.name for image in kept.collection.images()] == ["cat.png"]
    assert drafts.find(ACME, first) is None
    assert drafts.find(ACME, last) is not None


def test_a_form_that_makes_room_leaves_no_file(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    first = new(drafts, ACME)
    add(drafts, ACME, first, tmp_path / "file", 10)
    for _ in range(20):
        add(drafts, ACME, new(drafts, ACME), tmp_path / "file", 10)
    assert first not in {path.name for path in (tmp_path / "drafts").iterdir()}


def test_images_of_all_forms_of_an_account_are_limited(tmp_path: Path, redis_client: Redis) -> None:
    drafts, file = Drafts(redis_client, tmp_path / "drafts", 1000), tmp_path / "file"
    for caller, length in ((ACME, 900), (OTHER_KEY, 900), (ACME, 200)):
        assert add(drafts, caller, new(drafts, caller), file, length) == []
    [note] = add(drafts, ACME, new(drafts, ACME), file, 1)
    assert "larger than the 0 bytes that are left for the images of your open forms" in note
    assert add(drafts, ZOO, new(drafts, ZOO), file, 1000) == []


def test_only_its_caller_finds_a_form(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    draft_id = new(drafts, ACME)
    assert drafts.find(ACME, draft_id) is not None
    assert drafts.find(OTHER_KEY, draft_id) is None
    opened = drafts.find(ACME, draft_id)
    assert opened is not None
    drafts.close(opened)
    assert drafts.find(ACME, draft_id) is None
    # What still runs for its page, such as a model that writes captions, does not open it again.
    drafts.save(opened)
    assert drafts.find(ACME, draft_id) is None


def test_another_console_continues_a_form(tmp_path: Path, redis_client: Redis) -> None:
    one, two = (Drafts(redis_client, tmp_path / "drafts", 1000) for _ in range(2))
    draft_id = new(one, ACME)
    add(one, ACME, draft_id, tmp_path / "file", 10)
    opened = one.find(ACME, draft_id)
    assert opened is not None
    assert one.find(ACME, draft_id) is opened
    opened.draft.name = "cat"
    opened.draft.set("max_train_steps", 7)
    opened.draft.dataset = {"type": "ARCHIVE", "archive": "upload:x"}
    one.save(opened)
    continued = two.find(ACME, draft_id)
    assert continued is not None
    assert continued.draft.document() == opened.draft.document()
    assert [image.name for image in continued.collection.images()] == ["cat.png"]
    continued.draft.name = "dog"
    two.save(continued)
    again = one.find(ACME, draft_id)
    assert again is not None
    assert again.draft.name == "dog"


def test_a_form_of_another_version_is_not_continued(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    draft_id = new(drafts, ACME)
    opened = drafts.find(ACME, draft_id)
    assert opened is not None
    opened.draft.preset_name = "of_a_later_version"
    drafts.save(opened)
    assert Drafts(redis_client, tmp_path / "drafts", 1000).find(ACME, draft_id) is None


def test_what_a_form_keeps_is_bounded(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    opened = drafts.find(ACME, new(drafts, ACME))
    assert opened is not None
    assert 0 < int(redis_client.ttl(f"training:draft:{opened.id}")) <= 86_400
    opened.draft.name = "x" * 2**18
    with pytest.raises(TooLargeError):
        drafts.save(opened)


def test_images_of_expired_forms_are_removed(tmp_path: Path, redis_client: Redis) -> None:
    folder = tmp_path / "drafts"
    drafts = Drafts(redis_client, folder, 1000)
    kept, expired = new(drafts, ACME), new(drafts, ACME)
    for draft_id in (kept, expired):
        add(drafts, ACME, draft_id, tmp_path / "file", 10)
    (folder / "of-a-killed-console").touch()
    (folder / f"{kept}-0a1b2c3d").mkdir()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    redis_client.delete(f"training:draft:{expired}")
    new(Drafts(redis_client, folder, 1000), ZOO)
    assert [path.name for path in folder.iterdir()] == [kept]


def test_a_form_that_was_begun_is_offered_again(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    new(drafts, ACME)
    with_images, named = new(drafts, ACME), new(drafts, ACME)
    add(drafts, ACME, with_images, tmp_path / "file", 10)
    opened = drafts.find(ACME, named)
    assert opened is not None
    opened.draft.name = "my-cat"
    drafts.save(opened)
    found = drafts.begun(ACME)
    assert [(it.id, it.name, it.images) for it in found] == [
        (named, "my-cat", 0),
        (with_images, "lora", 1),
    ]
    assert drafts.begun(OTHER_KEY) == []
    drafts.close(opened)
    assert [it.id for it in drafts.begun(ACME)] == [with_images]


def test_empty_forms_make_room_first(tmp_path: Path, redis_client: Redis) -> None:
    drafts = Drafts(redis_client, tmp_path / "drafts", 1000)
    kept = new(drafts, ACME)
    add(drafts, ACME, kept, tmp_path / "file", 10)
    for _ in range(40):
        new(drafts, ACME)
    assert [it.id for it in drafts.begun(ACME)] == [kept]
