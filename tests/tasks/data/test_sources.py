import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.data.listing import Listing
from tasks.dataset import MAX_CAPTION_BYTES
from tasks.escaping import escaped, shortened
from tasks.jobs.datasets import (
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
)
from tests.tasks.data.reading import list_local

# Sources are listed without reading an image, so any bytes do.
IMAGE = b"an image"


def listing_of(folder: Path) -> Listing:
    return list_local(ImageCaptionDirDatasetConfig(dataset_dir=str(folder)))


def jsonl_listing(folder: Path, text: str | bytes, **columns: str) -> Listing:
    path = folder / "data.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_local(ImageCaptionJsonlDatasetConfig(jsonl_path=str(path), **columns))


def line(**row: Any) -> str:
    return json.dumps(row) + "\n"


def messages(listing: Listing) -> list[str]:
    return [str(problem) for problem in listing.problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset's folder, with a secret beside it."""
    (tmp_path / "secret.png").write_bytes(IMAGE)
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def add(folder: Path, captions: Mapping[str, str | bytes | None]) -> None:
    """Write images with their captions; None for an image without one."""
    for name, caption in captions.items():
        (folder / name).write_bytes(IMAGE)
        if caption is not None:
            text = caption if isinstance(caption, bytes) else caption.encode()
            (folder / name).with_suffix(".txt").write_bytes(text)


def test_a_folder_is_listed_by_name(folder: Path) -> None:
    add(
        folder, {"b.png": "two\n", "a.JPG": "  one ", "c.webp": "dräi", "d.jpeg": "4", "e.bmp": "5"}
    )
    (folder / "notes.md").write_text("not an image")
    (folder / "sub.png").mkdir()
    listing = listing_of(folder)
    assert [(item.name, item.caption) for item in listing.items] == [
        ("a.JPG", "one"),
        ("b.png", "two"),
        ("c.webp", "dräi"),
        ("d.jpeg", "4"),
        ("e.bmp", "5"),
    ]
    assert listing.items[0].path == folder / "a.JPG"
    assert listing.problems == []
    assert [str(warning) for warning in listing.warnings] == [
        "notes.md: is neither an image nor a caption; it is not used"
    ]


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        (None, "cat.png: has no caption; write it into cat.txt"),
        (b"", "cat.png: has an empty caption; describe the image"),
        (b" \n\t", "cat.png: has an empty caption; describe the image"),
        (b"\xef\xbb\xbf", "cat.png: has an empty caption; describe the image"),
        ("café".encode("latin-1"), "cat.txt: cannot be read as UTF-8 text"),
        (b"the cat\x92s bed", "cat.txt: cannot be read as UTF-8 text: byte 0x92 at position 7"),
        ("a cat".encode("utf-16-le"), "cat.txt: has a NUL character in its caption"),
        ("a cat".encode("utf-16-be"), "cat.txt: has a NUL character in its caption"),
        ("a cat".encode("utf-32-le"), "cat.txt: has a NUL character in its caption"),
        (b"a cat\0", "cat.txt: has a NUL character in its caption"),
        (b"\xff\xfea", "cat.txt: cannot be read as UTF-8 text"),
        ("a\x01cat", "cat.txt: has the control character U+0001 in its caption"),
        ("the cat\x92s bed", "cat.txt: has the control character U+0092 in its caption"),
        ("\u200b\ufeff\u2060", "cat.txt: has a caption of invisible characters only"),
        ("\u3164 \u2800\ufe0f", "cat.txt: has a caption of invisible characters only"),
        (b"x" * (MAX_CAPTION_BYTES + 1), "cat.txt: is longer than 65536 bytes"),
    ],
)
def test_an_invalid_caption_is_reported_by_its_file(
    folder: Path, caption: str | bytes | None, problem: str
) -> None:
    add(folder, {"cat.png": caption, "dog.png": "a dog"})
    listing = listing_of(folder)
    assert [item.name for item in listing.items] == ["dog.png"]
    [message] = messages(listing)
    assert message.startswith(problem)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(folder: Path, encoding: str) -> None:
    add(folder, {"cat.png": "a cät 🐈".encode(encoding)})
    listing = listing_of(folder)
    assert [item.caption for item in listing.items] == ["a cät 🐈"]
    assert listing.problems == []


def test_captions_of_any_script_are_kept(folder: Path) -> None:
    captions = ["猫", "قطة", "🐈\u200d⬛", "a\tcat\r\non\x85a mat", "...", "1girl"]
    add(folder, {f"{number}.png": text for number, text in enumerate(captions)})
    listing = listing_of(folder)
    assert [item.caption for item in listing.items] == [text.strip() for text in captions]


def test_a_caption_without_an_image_is_a_warning(folder: Path) -> None:
    add(folder, {"cat.png": "a cat"})
    (folder / "dog.txt").write_text("a dog")
    listing = listing_of(folder)
    assert listing.problems == []
    assert [str(warning) for warning in listing.warnings] == [
        "dog.txt: belongs to no image; it is not used"
    ]


def test_all_problems_of_a_folder_are_reported(folder: Path) -> None:
    add(folder, {"a.png": None, "b.png": "", "c.png": b"\xff"})
    assert [problem.location for problem in listing_of(folder).problems] == [
        "a.png",
        "b.png",
        "c.txt",
    ]


def test_a_missing_or_empty_folder_is_refused(folder: Path) -> None:
    assert messages(listing_of(folder)) == [
        f"{folder}: has no image (JPEG, PNG, WEBP, BMP, AVIF, HEIF)"
    ]
    for path in (folder / "none", folder.parent / "secret.png"):
        assert messages(listing_of(path)) == [f"{path}: there is no such folder on this worker"]


def test_rows_are_listed_in_order(folder: Path) -> None:
    (folder / "sub").mkdir()
    add(folder, {"a.png": None, "sub/b.png": None})
    text = line(image="sub/b.png", text=" two ") + "\n" + line(image="a.png", text="one", more=1)
    listing = jsonl_listing(folder, text)
    assert [(item.name, item.caption) for item in listing.items] == [
        ("data.jsonl line 1 (sub/b.png)", "two"),
        ("data.jsonl line 3 (a.png)", "one"),
    ]
    assert listing.problems == []


def test_columns_and_byte_order_mark_of_a_jsonl_file(folder: Path) -> None:
    add(folder, {"a.png": None})
    text = b"\xef\xbb\xbf" + line(file="a.png", prompt="one").encode()
    listing = jsonl_listing(folder, text, image_column="file", caption_column="prompt")
    assert [item.caption for item in listing.items] == ["one"]
    assert listing.problems == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (line(image="../secret.png", text="x"), "outside the dataset's folder"),
        (line(image="sub/../../secret.png", text="x"), "outside the dataset's folder"),
        (line(image="/etc/passwd", text="x"), "outside the dataset's folder"),
        (line(image="link.png", text="x"), "outside the dataset's folder"),
        (line(image="linked/secret.png", text="x"), "outside the dataset's folder"),
        (line(image="a\0.png", text="x"), "which cannot be opened"),
        (line(image="none.png", text="x"), "there is no image none.png"),
        (line(image="", text="x"), "there is no image ''"),
        (
            line(image="sub\\a.png", text="x"),
            r"image sub\a.png; write '/' between folders, not '\'",
        ),
        (line(image="x" * 5000, text="x"), "which cannot be opened"),
        (line(image="loop.png", text="x"), "which cannot be opened"),
        (line(image="a\ud800.png", text="x"), "has half a character"),
        (line(image="a.png"), "has no text in the column 'text'"),
        (line(image=1, text="x"), "has no text in the column 'image'"),
        (line(image="a.png", text=None), "has no text in the column 'text'"),
        (line(image="a.png", text=" "), "has an empty caption"),
        (line(image="a.png", text="x" * 70_000), "has a caption of over 65536 bytes"),
        (line(image="a.png", text="half \ud800"), "has half a character"),
        ("[1, 2]\n", "is not a JSON object"),
        ("{'image': 'a.png'}\n", "is not JSON: "),
        ("[" * 100_000 + "\n", "is nested too deeply"),
        ("1" * 5_000 + "\n", "has a number of too many digits"),
        (line(image="a.png", text="x" * 2**20), "is longer than 1,048,576 bytes"),
        (line(image="\x1b[31mred\u202e.png", text="x"), r"\u001b[31mred\u202e"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_an_invalid_row_is_reported_by_its_line(folder: Path, row: str, message: str) -> None:
    add(folder, {"a.png": None})
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    listing = jsonl_listing(folder, line(image="a.png", text="one") + row)
    assert [item.caption for item in listing.items] == ["one"]
    [problem] = listing.problems
    assert problem.location.startswith("data.jsonl line 2")
    assert message in problem.message
    assert len(str(problem)) < 6000
    str(problem).encode()


def test_a_line_separator_in_a_caption_does_not_end_its_row(folder: Path) -> None:
    add(folder, {"a.png": None})
    row = json.dumps({"image": "a.png", "text": "one\u2028two\x85three"}, ensure_ascii=False)
    listing = jsonl_listing(folder, row + "\r\n")
    assert listing.problems == []
    assert [item.caption for item in listing.items] == ["one\u2028two\x85three"]


def test_a_link_inside_the_folder_is_followed(folder: Path) -> None:
    add(folder, {"a.png": None})
    (folder / "link.png").symlink_to(folder / "a.png")
    listing = jsonl_listing(folder, line(image="link.png", text="one"))
    assert [item.caption for item in listing.items] == ["one"]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_jsonl_file_without_rows_is_refused(folder: Path, text: str) -> None:
    [message] = messages(jsonl_listing(folder, text))
    assert "has no image" in message


def test_a_jsonl_file_that_cannot_be_read_is_refused(folder: Path) -> None:
    [message] = messages(jsonl_listing(folder, b"\xc3("))
    assert "data.jsonl line 1: is not UTF-8 text" in message
    for path in (folder, folder / "none.jsonl"):
        config = ImageCaptionJsonlDatasetConfig(jsonl_path=str(path))
        assert messages(list_local(config)) == [f"{path}: there is no such file on this worker"]


def test_an_impossible_path_is_a_problem() -> None:
    path = "x" * 5000
    for config in (
        ImageCaptionDirDatasetConfig(dataset_dir=path),
        ImageCaptionJsonlDatasetConfig(jsonl_path=path),
    ):
        [problem] = list_local(config).problems
        assert problem.location == shortened(escaped(path), 300)
        assert "cannot be read" in problem.message or "there is no such" in problem.message


def test_a_file_name_must_be_utf_8(folder: Path) -> None:
    add(folder, {"a.png": "one"})
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(IMAGE)
    listing = listing_of(folder)
    assert [item.name for item in listing.items] == ["a.png"]
    assert messages(listing) == ["caf\ufffd.png: has a name that is not UTF-8; rename it"]
