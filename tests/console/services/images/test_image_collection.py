import errno
import zipfile
from pathlib import Path

import pytest

from console.services.images import image_collection
from console.services.images.image_collection import CollectedImage, ImageCollection, NewFile


def given(folder: Path, name: str, content: bytes = b"") -> NewFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sent-{abs(hash((name, content)))}"
    path.write_bytes(content or name.encode())
    return NewFile(name, path)


def collection(tmp_path: Path, max_bytes: int = 1000) -> ImageCollection:
    return ImageCollection(tmp_path / "scratch", "images", max_bytes)


def shown(images: ImageCollection) -> dict[str, str | None]:
    return {image.name: image.caption for image in images.images()}


def test_images_and_captions_become_an_archive(tmp_path: Path) -> None:
    images = collection(tmp_path)
    assert images.add([given(tmp_path, "b.png")]) == []
    assert images.add([given(tmp_path, "a.jpg"), given(tmp_path, "a.txt", b"a cat\n")]) == []
    assert shown(images) == {"a.jpg": "a cat", "b.png": None}
    with zipfile.ZipFile(images.pack()) as archive:
        assert archive.namelist() == ["a.jpg", "a.txt", "b.png"]
        assert archive.read("a.txt") == b"a cat\n"


def test_the_same_images_make_the_same_archive(tmp_path: Path) -> None:
    made = []
    for part in ("one", "two"):
        images = collection(tmp_path / part)
        images.add([given(tmp_path / part, "a.png")])
        made.append(images.pack().read_bytes())
    assert made[0] == made[1]


def test_images_of_one_name_are_both_kept_with_their_captions(tmp_path: Path) -> None:
    images = collection(tmp_path)
    for folder in ("a", "b"):
        image = given(tmp_path, f"{folder}/cat.jpg")
        caption = given(tmp_path, f"{folder}/cat.txt", f"cat of {folder}".encode())
        assert images.add([image, caption]) == []
    # Another suffix, or another case, would share the caption.
    images.add([given(tmp_path, "c/CAT.png"), given(tmp_path, "c/CAT.txt", b"cat of c")])
    assert shown(images) == {
        "cat.jpg": "cat of a",
        "cat-2.jpg": "cat of b",
        "CAT-3.png": "cat of c",
    }


def test_two_images_and_one_caption_get_it_both(tmp_path: Path) -> None:
    images = collection(tmp_path)
    files = [given(tmp_path, name) for name in ("cat.jpg", "cat.png")]
    images.add([*files, given(tmp_path, "cat.txt", b"a cat")])
    assert shown(images) == {"cat.jpg": "a cat", "cat-2.png": "a cat"}


def test_identical_images_are_one_file(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "cat.png", b"same")])
    [note] = images.add([given(tmp_path, "b/dog.png", b"same")])
    assert note == "b/dog.png is the same image as cat.png"
    again = [given(tmp_path, "c/dog.png", b"same"), given(tmp_path, "c/dog.txt", b"a cat")]
    assert images.add(again) == []
    assert shown(images) == {"cat.png": "a cat"}
    images.write_caption("cat.png", "written in the browser")
    [note] = images.add(
        [given(tmp_path, "c/dog.png", b"same"), given(tmp_path, "c/dog.txt", b"a cat")]
    )
    assert "which keeps its caption" in note
    assert shown(images) == {"cat.png": "written in the browser"}


def test_a_caption_may_come_before_or_after_its_image(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "a.TXT", b"first")])
    assert images.is_empty
    images.add([given(tmp_path, "a.HEIC")])
    assert shown(images) == {"a.HEIC": "first"}
    images.add([given(tmp_path, "A.txt", b"second")])
    assert shown(images) == {"a.HEIC": "second"}


@pytest.mark.parametrize("name", ["..", "a/..", "a.exe", "a.svg", "a\n.png", "a" * 200 + ".png"])
def test_other_files_and_paths_are_not_added(tmp_path: Path, name: str) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "before.png")])
    file = NewFile(name, given(tmp_path, "sent").path)
    images.add([file])
    assert images.names() == ["before.png"]
    assert {path.name for path in (tmp_path / "scratch").rglob("*")} == {"images", "before.png"}


def test_paths_lose_their_folders(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "../../a.png"), given(tmp_path, "/etc/b.png")])
    assert images.names() == ["a.png", "b.png"]
    assert not (tmp_path / "a.png").exists()


def test_files_of_systems_are_ignored(tmp_path: Path) -> None:
    images = collection(tmp_path)
    files = [given(tmp_path, name) for name in ("a/.DS_Store", "__MACOSX/a.png", "Thumbs.db")]
    assert images.add(files) == []
    assert images.is_empty


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("a.GIF", "a.GIF is a GIF, which is not read; save it as PNG"),
        ("notes.pdf", "notes.pdf is a PDF, which is not read; save it as PNG"),
        ("metadata.jsonl", "metadata.jsonl is read in an archive only"),
        ("a.exe", "a.exe has none of the types"),
    ],
)
def test_a_file_that_is_not_added_is_named(tmp_path: Path, name: str, note: str) -> None:
    [found] = collection(tmp_path).add([given(tmp_path, name)])
    assert note in found


def test_files_above_the_size_limit_are_not_added(tmp_path: Path) -> None:
    images = collection(tmp_path, max_bytes=10)
    images.add([given(tmp_path, "a.png", b"x" * 8)])
    [note] = images.add([given(tmp_path, "b.png", b"x" * 3)])
    assert note.startswith("b.png is larger than the 2 bytes that are left")
    assert images.names() == ["a.png"]


def test_the_number_of_images_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_collection, "MAX_FILES", 2)
    images = collection(tmp_path)
    notes = images.add([given(tmp_path, name) for name in ("a.png", "b.png", "c.png")])
    assert notes == ["c.png is over the 2 images that a form takes"]
    assert images.names() == ["a.png", "b.png"]


def test_an_image_is_removed_with_its_caption(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "a.png")])
    images.write_caption("a.png", " a cat ")
    assert shown(images) == {"a.png": "a cat"}
    images.write_caption("a.png", "  ")
    assert shown(images) == {"a.png": None}
    images.write_caption("a.png", "a dog")
    assert images.remove("a.png")
    assert not images.remove("a.png")
    assert images.is_empty
    assert not list((tmp_path / "scratch").rglob("*.txt"))


def test_a_caption_is_read_in_any_usual_encoding_and_bounded(tmp_path: Path) -> None:
    images = collection(tmp_path, max_bytes=10**6)
    images.add([given(tmp_path, "a.png"), given(tmp_path, "a.txt", "\ufeffdé".encode("utf-16-le"))])
    assert shown(images) == {"a.png": "dé"}
    images.write_caption("a.png", "é" * 70_000)
    caption = shown(images)["a.png"]
    assert caption is not None
    assert len(caption.encode()) < 2**16
    assert set(caption) == {"é"}


def test_captions_are_edited_together_and_restored(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, name) for name in ("a.png", "b.png")])
    images.write_caption("a.png", "a cat")

    def with_prefix(image: CollectedImage) -> str:
        return f"ohwx, {image.caption}" if image.caption else ""

    former = images.edit_captions(with_prefix)
    assert former == {"a.png": "a cat"}
    assert shown(images) == {"a.png": "ohwx, a cat", "b.png": None}
    for name, caption in former.items():
        images.write_caption(name, caption)
    assert shown(images) == {"a.png": "a cat", "b.png": None}


def test_a_full_disk_leaves_a_caption_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "a.png"), given(tmp_path, "a.txt", b"a cat")])
    write = Path.write_text

    def fill_up(path: Path, text: str, *arguments: str) -> int:
        write(path, text[:1], *arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", fill_up)
        with pytest.raises(OSError, match="No space left"):
            images.write_caption("a.png", "a longer caption")
    assert shown(images) == {"a.png": "a cat"}
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["images"]


def test_two_pages_pack_into_two_archives(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "a.png")])
    one, two = images.pack(), images.pack()
    assert one != two
    assert one.read_bytes() == two.read_bytes()


def test_names_that_differ_by_case_keep_their_captions(tmp_path: Path) -> None:
    images = collection(tmp_path)
    names = ("cat.png", "Cat.png", "cat.txt", "Cat.txt")
    images.add([given(tmp_path, name, f"of {name}".encode()) for name in names])
    assert shown(images) == {"cat.png": "of cat.txt", "Cat-2.png": "of Cat.txt"}


def test_captions_without_images_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_collection, "MAX_FILES", 2)
    images = collection(tmp_path)
    assert images.add([given(tmp_path, "a.txt"), given(tmp_path, "b.txt")]) == []
    assert images.add([given(tmp_path, "a.txt", b"new")]) == []
    assert images.add([given(tmp_path, "c.txt")]) == ["c.txt is over the 2 captions of a form"]
    assert {path.name for path in images.captions()} == {"a.txt", "b.txt"}


def test_paths_outside_the_collection_are_ignored(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "a.png")])
    outside = tmp_path / "scratch" / "outside.png"
    outside.write_bytes(b"x")
    assert not images.remove("../outside.png")
    assert not images.write_caption("../outside.png", "mine")
    assert not images.write_caption("a\0.png", "mine")
    assert outside.exists()
    assert not outside.with_suffix(".txt").exists()


def test_clearing_leaves_no_files(tmp_path: Path) -> None:
    images = collection(tmp_path)
    images.add([given(tmp_path, "a.png")])
    images.pack().unlink()
    images.clear()
    assert list((tmp_path / "scratch").iterdir()) == []
