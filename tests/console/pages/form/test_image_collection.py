import zipfile
from pathlib import Path

import pytest

from console.pages.form.image_collection import CollectedImage, ImageCollection, NotAddedError


def given(folder: Path, name: str, content: bytes = b"x") -> Path:
    path = folder / f"sent-{abs(hash(name))}"
    path.write_bytes(content)
    return path


def collection(tmp_path: Path, max_bytes: int = 1000) -> ImageCollection:
    return ImageCollection(tmp_path / "scratch", "images", max_bytes)


def test_images_and_captions_become_an_archive(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add("b.png", given(tmp_path, "b"))
    images.add("a.jpg", given(tmp_path, "a"))
    images.add("a.txt", given(tmp_path, "t", b"a cat\n"))
    assert images.images() == [CollectedImage("a.jpg", "a cat"), CollectedImage("b.png", None)]
    with zipfile.ZipFile(images.pack()) as archive:
        assert archive.namelist() == ["a.jpg", "a.txt", "b.png"]
        assert archive.read("a.txt") == b"a cat\n"


def test_the_same_images_make_the_same_archive(tmp_path: Path) -> None:
    made = []
    for part in ("one", "two"):
        images = collection(tmp_path / part)
        (tmp_path / part).mkdir()
        images.add("a.png", given(tmp_path / part, "a"))
        made.append(images.pack().read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "name",
    ["../a.png", "a/b.png", "", ".", "..", ".png", "a.exe", "a.svg", "a\n.png", "a" * 200 + ".png"],
)
def test_other_files_and_paths_are_not_added(tmp_path: Path, name: str) -> None:
    images = collection(tmp_path)
    with pytest.raises(NotAddedError):
        images.add(name, given(tmp_path, name))
    assert images.is_empty


def test_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAddedError, match=r"a\.GIF is a GIF, which is not read; save it as PNG"):
        collection(tmp_path).add("a.GIF", given(tmp_path, "a"))


def test_a_caption_may_have_a_suffix_in_capitals(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add("a.HEIC", given(tmp_path, "a"))
    images.add("a.TXT", given(tmp_path, "t", b"a cat"))
    assert images.images() == [CollectedImage("a.HEIC", "a cat")]


def test_files_above_the_size_limit_are_not_added(tmp_path: Path) -> None:
    images = collection(tmp_path, max_bytes=10)
    images.add("a.png", given(tmp_path, "a", b"x" * 8))
    with pytest.raises(NotAddedError, match=r"b\.png exceeds the limit of 10 bytes"):
        images.add("b.png", given(tmp_path, "b", b"x" * 3))
    assert [it.name for it in images.images()] == ["a.png"]


def test_an_archive_and_images_replace_each_other(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add("a.png", given(tmp_path, "a"))
    images.add("all.zip", given(tmp_path, "z", b"PK"))
    assert images.archive == "all.zip"
    assert images.images() == []
    assert images.pack().read_bytes() == b"PK"
    images.add("b.png", given(tmp_path, "b"))
    assert images.archive is None
    assert [it.name for it in images.images()] == ["b.png"]


def test_an_image_is_removed_with_its_caption(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add("a.png", given(tmp_path, "a"))
    images.write_caption("a.png", " a cat ")
    assert images.images() == [CollectedImage("a.png", "a cat")]
    images.write_caption("a.png", "  ")
    assert images.images() == [CollectedImage("a.png", None)]
    images.write_caption("a.png", "a dog")
    images.remove("a.png")
    assert images.is_empty
    assert not list((tmp_path / "scratch").rglob("*.txt"))


def test_paths_outside_the_collection_are_ignored(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add("a.png", given(tmp_path, "a"))
    outside = tmp_path / "scratch" / "outside.png"
    outside.write_bytes(b"x")
    images.remove("../outside.png")
    images.write_caption("../outside.png", "mine")
    assert outside.exists()
    assert not outside.with_suffix(".txt").exists()


def test_clearing_leaves_no_files(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add("a.png", given(tmp_path, "a"))
    images.pack()
    images.clear()
    assert list((tmp_path / "scratch").iterdir()) == []
