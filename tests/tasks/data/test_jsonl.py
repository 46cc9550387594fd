import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tasks.data.jsonl import column_remedy
from tasks.data.listing import Listing
from tasks.jobs.datasets import ImageCaptionJsonlDatasetConfig
from tests.tasks.data.reading import list_local


def listing_of(folder: Path, text: str | bytes, masks: bool = False, **columns: str) -> Listing:
    path = folder / "data.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = ImageCaptionJsonlDatasetConfig(jsonl_path=str(path), **columns)
    return list_local(config, masks=masks)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a file")


def messages(listing: Listing) -> list[str]:
    return [str(problem) for problem in listing.problems]


def warned(listing: Listing) -> list[str]:
    return [str(warning) for warning in listing.warnings]


FORM = 'write one JSON object a line: {"image": "a.png", "text": "a caption"}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file_name,text\na.png,a\n", f"is CSV, not JSONL; {FORM}"),
        ('"file_name";"text"\n"a.png";"a, b"\n', f"is CSV, not JSONL; {FORM}"),
        ("\ufeffa.png\ta cat\n", f"is CSV, not JSONL; {FORM}"),
        ('[\n  {"image": "a.png", "text": "a"}\n]', f"is a JSON array; {FORM}"),
        ('\n [{"image": "a.png", "text": "a"}]', f"is a JSON array; {FORM}"),
        ('{\n  "a.png": "a"\n}', f"is one JSON document in several lines; {FORM}"),
        (lines({"image": "a.png"}).encode("utf-16"), "is UTF-16 text or no text; save it as UTF-8"),
        (lines({"image": "a"}).encode("utf-16-le"), "is UTF-16 text or no text; save it as UTF-8"),
    ],
)
def test_another_form_is_named_once(tmp_path: Path, text: str | bytes, problem: str) -> None:
    listing = listing_of(tmp_path, text)
    assert messages(listing) == [f"{tmp_path}/data.jsonl: {problem}"]


def test_wrong_columns_are_one_finding_each(tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.png", "prompt": "a", "width": 5} for n in range(300)]
    listing = listing_of(tmp_path, lines(*rows))
    assert messages(listing) == [
        "data.jsonl: no row has text in the column 'image'; the columns are file_name, prompt, "
        "width; set image_column: file_name",
        "data.jsonl: no row has text in the column 'text'; the columns are file_name, prompt, "
        "width; set caption_column: prompt",
    ]
    write(tmp_path, *(f"{n}.png" for n in range(300)))
    fixed = listing_of(tmp_path, lines(*rows), image_column="file_name", caption_column="prompt")
    assert len(fixed.items) == 300


def test_rows_without_a_column_are_named(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    good = {"image": "a.png", "text": "a"}
    few = listing_of(tmp_path, lines(good, {"image": "a.png"}, good, {"image": 1, "text": "a"}))
    assert messages(few) == [
        "data.jsonl line 2: has no text in the column 'text'; the columns are image",
        "data.jsonl line 4: has no text in the column 'image'; the columns are image, text",
    ]
    many = listing_of(tmp_path, lines(good, *[{"image": "a.png", "caption": "a"}] * 9))
    assert messages(many) == [
        "data.jsonl: 9 of 10 rows have no text in the column 'text' (lines 2, 3, 4, 5, ...); the "
        "columns are image, caption; set caption_column: caption"
    ]


@pytest.mark.parametrize(
    ("option", "wanted", "columns", "remedy"),
    [
        ("image_column", "image", ["file_name", "text"], "set image_column: file_name"),
        ("image_column", "image", ["Image", "path"], "set image_column: Image"),
        ("caption_column", "text", ["prompt", "caption"], "set caption_column: caption"),
        ("caption_column", "text", ["x", "y"], "set caption_column to one of them"),
        ("caption_column", "text", [], ""),
    ],
)
def test_the_likely_column_is_offered(
    option: str, wanted: str, columns: list[str], remedy: str
) -> None:
    assert column_remedy(option, wanted, columns) == remedy


def test_an_image_is_found_by_an_equal_name(tmp_path: Path) -> None:
    on_disk = ("A.JPG", unicodedata.normalize("NFD", "sub/é.png"), "twin.png", "TWIN.png")
    write(tmp_path, *on_disk)
    names = ("a.jpg", unicodedata.normalize("NFC", "sub/É.png"), "twin.png", "Twin.png")
    listing = listing_of(tmp_path, lines(*({"image": name, "text": "a"} for name in names)))
    assert [item.path.name for item in listing.items] == [
        *("A.JPG", unicodedata.normalize("NFD", "é.png"), "twin.png")
    ]
    # Either might be meant.
    assert messages(listing) == ["data.jsonl line 4: there is no image Twin.png"]


def test_what_no_row_names_is_named(tmp_path: Path) -> None:
    write(
        tmp_path, "a.png", "b.png", "c/d.png", "a.txt", "old.jsonl", ".DS_Store", "e.gif", "f.gif"
    )
    rows = lines({"image": "./a.png", "text": "a"}, {"image": "e.gif", "text": "e"})
    listing = listing_of(tmp_path, rows)
    assert messages(listing) == []
    assert warned(listing) == [
        "data.jsonl line 2 (e.gif): is a GIF, which is not read; save it as PNG",
        "b.png: is named by no row of data.jsonl; it is not used",
        "c/d.png: is named by no row of data.jsonl; it is not used",
        "a.txt: is not used: captions are in the rows of data.jsonl",
        "f.gif: is a GIF, which is not read; save it as PNG",
        "old.jsonl: is not read by this type of dataset; to use its captions, save them as "
        "JSONL and name that file as the dataset",
        f"{tmp_path}/data.jsonl: 1 system file or folder is ignored: .DS_Store",
    ]


def test_masks_are_named_by_rows(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "mask.png")
    row = lines({"image": "a.png", "text": "a", "mask": "MASK.png"})
    used = listing_of(tmp_path, row, masks=True)
    assert (used.items[0].mask, warned(used)) == (tmp_path / "mask.png", [])
    unused = listing_of(tmp_path, row.replace("MASK", "mask"))
    assert warned(unused) == ["data.jsonl: names 1 masks, which are not used; set use_masks"]
