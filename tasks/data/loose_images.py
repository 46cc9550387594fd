"""The images of an unpacked archive as loose files: each with at most one caption file."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from tasks.data.contents import CaptionFiles, Contents, system_part
from tasks.data.decoding.archives import Unpacked
from tasks.data.jsonl import USUAL_COLUMNS, JsonlRows, find_in_files
from tasks.data.listing import Listing, SourceError, grouped
from tasks.errors import Problem
from tasks.jobs.datasets import ArchiveDatasetConfig

# What other tools call the file of the captions; of others, an archive has one only.
_CAPTIONS_FILE = re.compile(r"(metadata|captions?|dataset|train)\.jsonl", re.IGNORECASE)
_FIRST_LINE_BYTES = 2**20


@dataclass(frozen=True)
class LooseImage:
    """An image.

    Attributes:
        name: Its name in the archive.
        path: Its file.
        caption: The file of its caption; None without one.
    """

    name: str
    path: Path
    caption: Path | None


@dataclass
class LooseImages:
    """The images of an archive.

    Attributes:
        images: The images, by name.
        problems: What is not used.
    """

    images: list[LooseImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def loose_images(
    unpacked: Unpacked, folder: Path, config: ArchiveDatasetConfig | None = None
) -> LooseImages:
    """Return the images of an archive; captions of its JSONL file become files.

    Args:
        unpacked: The contents of the archive.
        folder: The folder for the new files.
        config: How a job reads the archive; None finds a JSONL file by its name.

    Raises:
        SourceError: The JSONL file of the job cannot be read.
    """
    names = [name for name in (*unpacked.files, *unpacked.others) if not system_part(name)]
    contents = Contents(names)
    rows = _named_rows(unpacked, config) if config else _found_rows(unpacked, contents)
    result = LooseImages(problems=[*unpacked.problems])
    written: dict[Path, Path] = {}
    named: set[str] = set()
    if rows is not None:
        listing, location = rows
        named.add(location)
        result.problems += listing.problems
        for number, item in enumerate(listing.items):
            caption = folder / f"caption-{number}.txt"
            caption.write_text(f"{item.caption}\n", "utf-8")
            if written.setdefault(item.path, caption) is not caption:
                caption.unlink()
                result.problems.append(Problem(item.name, "names its image again; it is not used"))
    captions = CaptionFiles(contents.captions)
    is_jsonl = config is not None and config.jsonl is not None
    for name in contents.images:
        if name not in unpacked.files:
            continue
        path = unpacked.files[name]
        if is_jsonl and path not in written:
            continue
        text = None if is_jsonl else captions.of(name)
        caption_file = unpacked.files.get(text) if text else written.get(path)
        result.images.append(LooseImage(name, path, caption_file))
    result.problems += contents.findings("the archive", named)
    result.problems = grouped(result.problems)
    return result


def _named_rows(unpacked: Unpacked, config: ArchiveDatasetConfig) -> tuple[Listing, str] | None:
    """Return the rows of the JSONL file that a job names."""
    if config.jsonl is None:
        return None
    path = unpacked.files.get(config.jsonl)
    if path is None:
        raise SourceError(f"has no file {config.jsonl}")
    return _rows(unpacked, config.jsonl, path, config), config.jsonl


def _found_rows(unpacked: Unpacked, contents: Contents) -> tuple[Listing, str] | None:
    """Return the rows of the JSONL file that an archive seems to have for its captions."""
    found = [name for name in unpacked.files if name.lower().endswith(".jsonl")]
    usual = [name for name in found if _CAPTIONS_FILE.fullmatch(PurePosixPath(name).name)]
    name = next(iter(usual or found), None)
    if name is None or (len(found) > 1 and not usual):
        return None
    path = unpacked.files[name]
    columns = _columns(path)
    chosen = {
        option: next((column for column in USUAL_COLUMNS[option] if column in columns), None)
        for option in USUAL_COLUMNS
    }
    if None in chosen.values():
        return None
    config = ArchiveDatasetConfig.model_validate({"archive": "archive", "jsonl": name, **chosen})
    try:
        return _rows(unpacked, name, path, config), name
    except SourceError:  # it is no JSONL: reported as a file that is not used
        return None


def _rows(unpacked: Unpacked, name: str, path: Path, config: ArchiveDatasetConfig) -> Listing:
    listing = Listing("the archive")
    rows = JsonlRows(listing, config, path, name, captions=True, masks=False)
    folder = PurePosixPath(name).parent
    return rows.resolve(partial(find_in_files, unpacked.files, folder))


def _columns(path: Path) -> list[str]:
    """Return the columns of a JSONL file's first row whose values are texts."""
    with path.open("rb") as file, suppress(ValueError, RecursionError):
        row = json.loads(file.readline(_FIRST_LINE_BYTES))
        return [*_texts(row)] if isinstance(row, dict) else []
    return []


def _texts(row: dict[str, object]) -> Iterator[str]:
    return (name for name, value in row.items() if isinstance(value, str))
