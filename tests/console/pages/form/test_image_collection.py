import zipfile
from pathlib import Path

import pytest

from console.pages.form.image_collection import Collection, NotAddedError, Picture


def given(folder: Path, name: str, content: bytes = b"x") -> Path:
    path = folder / f"sent-{abs(hash(name))}"
    path.write_bytes(content)
    return path


def collection(tmp_path: Path, most_bytes: int = 1000) -> Collection:
    return Collection(tmp_path / "scratch", most_bytes)


def test_pictures_and_captions_become_an_archive(tmp_path: Path) -> None:
    pictures = collection(tmp_path)
    pictures.add("b.png", given(tmp_path, "b"))
    pictures.add("a.jpg", given(tmp_path, "a"))
    pictures.add("a.txt", given(tmp_path, "t", b"a cat\n"))
    assert pictures.pictures() == [Picture("a.jpg", "a cat"), Picture("b.png", None)]
    with zipfile.ZipFile(pictures.pack()) as archive:
        assert archive.namelist() == ["a.jpg", "a.txt", "b.png"]
        assert archive.read("a.txt") == b"a cat\n"


def test_the_same_pictures_make_the_same_archive(tmp_path: Path) -> None:
    made = []
    for part in ("one", "two"):
        pictures = collection(tmp_path / part)
        (tmp_path / part).mkdir()
        pictures.add("a.png", given(tmp_path / part, "a"))
        made.append(pictures.pack().read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "name",
    ["../a.png", "a/b.png", "", ".", "..", ".png", "a.exe", "a.svg", "a\n.png", "a" * 200 + ".png"],
)
def test_what_is_no_picture_or_leads_elsewhere_is_not_added(tmp_path: Path, name: str) -> None:
    pictures = collection(tmp_path)
    with pytest.raises(NotAddedError):
        pictures.add(name, given(tmp_path, name))
    assert pictures.is_empty


def test_more_bytes_than_are_allowed_are_not_added(tmp_path: Path) -> None:
    pictures = collection(tmp_path, most_bytes=10)
    pictures.add("a.png", given(tmp_path, "a", b"x" * 8))
    with pytest.raises(NotAddedError, match=r"b\.png makes more than 10 bytes"):
        pictures.add("b.png", given(tmp_path, "b", b"x" * 3))
    assert [it.name for it in pictures.pictures()] == ["a.png"]


def test_an_archive_takes_the_place_of_pictures_and_they_take_its(tmp_path: Path) -> None:
    pictures = collection(tmp_path)
    pictures.add("a.png", given(tmp_path, "a"))
    pictures.add("all.zip", given(tmp_path, "z", b"PK"))
    assert pictures.archive == "all.zip"
    assert pictures.pictures() == []
    assert pictures.pack().read_bytes() == b"PK"
    pictures.add("b.png", given(tmp_path, "b"))
    assert pictures.archive is None
    assert [it.name for it in pictures.pictures()] == ["b.png"]


def test_a_picture_goes_with_its_caption(tmp_path: Path) -> None:
    pictures = collection(tmp_path)
    pictures.add("a.png", given(tmp_path, "a"))
    pictures.write_caption("a.png", " a cat ")
    assert pictures.pictures() == [Picture("a.png", "a cat")]
    pictures.write_caption("a.png", "  ")
    assert pictures.pictures() == [Picture("a.png", None)]
    pictures.write_caption("a.png", "a dog")
    pictures.remove("a.png")
    assert pictures.is_empty
    assert not list((tmp_path / "scratch").rglob("*.txt"))


def test_names_from_elsewhere_touch_nothing(tmp_path: Path) -> None:
    pictures = collection(tmp_path)
    pictures.add("a.png", given(tmp_path, "a"))
    outside = tmp_path / "scratch" / "outside.png"
    outside.write_bytes(b"x")
    pictures.remove("../outside.png")
    pictures.write_caption("../outside.png", "mine")
    assert outside.exists()
    assert not outside.with_suffix(".txt").exists()


def test_nothing_is_left_once_it_is_cleared(tmp_path: Path) -> None:
    pictures = collection(tmp_path)
    pictures.add("a.png", given(tmp_path, "a"))
    pictures.pack()
    pictures.clear()
    assert list((tmp_path / "scratch").iterdir()) == []
