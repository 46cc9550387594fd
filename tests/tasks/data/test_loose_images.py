import json
from pathlib import Path

import pytest

from tasks.data.decoding.archives import Unpacked
from tasks.data.listing import SourceError
from tasks.data.loose_images import LooseImages, loose_images
from tasks.jobs.datasets import ArchiveDatasetConfig


def unpacked(folder: Path, files: dict[str, str], *others: str) -> Unpacked:
    folder.mkdir(parents=True)
    paths = {}
    for number, (name, text) in enumerate(files.items()):
        paths[name] = folder / f"{number:08d}{Path(name).suffix}"
        paths[name].write_text(text, "utf-8")
    return Unpacked(paths, [], list(others))


def captions(found: LooseImages) -> dict[str, str | None]:
    return {
        it.name: None if it.caption is None else it.caption.read_text("utf-8").strip()
        for it in found.images
    }


def rows(*each: dict[str, str]) -> str:
    return "\n".join(json.dumps(row) for row in each)


def test_captions_are_files_or_rows(tmp_path: Path) -> None:
    files = {
        "a/cat.png": "", "a/cat.txt": "a cat", "dog.png": "", "owl.png": "",
        "metadata.jsonl": rows({"file_name": "dog.png", "text": "a dog", "id": "1"}),
    }  # fmt: skip
    found = loose_images(unpacked(tmp_path / "files", files), tmp_path)
    assert captions(found) == {"a/cat.png": "a cat", "dog.png": "a dog", "owl.png": None}
    assert found.problems == []


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    files = {"cat.png": "", "other.jsonl": "[1]"}
    found = loose_images(
        unpacked(tmp_path / "files", files, "movie.mp4", "__MACOSX/x", "inner.zip"), tmp_path
    )
    assert captions(found) == {"cat.png": None}
    assert {problem.location for problem in found.problems} == {
        "movie.mp4",
        "inner.zip",
        "other.jsonl",
    }


def test_a_jobs_rows_decide_which_images_it_has(tmp_path: Path) -> None:
    text = rows(
        {"image": "cat.png", "text": "a cat"},
        {"image": "cat.png", "text": "again"},
        {"image": "gone.png", "text": "gone"},
    )
    files = {"cat.png": "", "dog.png": "", "dog.txt": "a dog", "rows.jsonl": text}
    config = ArchiveDatasetConfig(archive="upload:x", jsonl="rows.jsonl")
    found = loose_images(unpacked(tmp_path / "files", files), tmp_path, config)
    assert captions(found) == {"cat.png": "a cat"}
    messages = [str(problem) for problem in found.problems]
    assert any("gone.png" in message for message in messages)
    assert any("names its image again" in message for message in messages)
    with pytest.raises(SourceError, match="has no file"):
        loose_images(
            unpacked(tmp_path / "more", {"cat.png": ""}),
            tmp_path,
            ArchiveDatasetConfig(archive="upload:x", jsonl="rows.jsonl"),
        )
