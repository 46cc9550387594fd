"""Data-set sources: where each picture is, and its caption. Reads no pictures."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from tasks.errors import Fault
from tasks.jobs.data import (
    DataSetConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
    ImageDirDatasetConfig,
)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
# A caption of this many bytes is some 20 times what T5 reads; longer ones are no captions.
MOST_CAPTION_BYTES = 64 * 1024
MOST_ITEMS = 1_000_000


@dataclass(frozen=True)
class Item:
    """One picture with its caption.

    Attributes:
        path: The picture's file.
        name: What it is called in messages.
        caption: Its caption, stripped; empty where none is used.
        mask: Its mask's file, where it has one that is used.
        part: Which of the data loader's sources it is of.
    """

    path: Path
    name: str
    caption: str
    mask: Path | None = None
    part: int = 0


@dataclass
class Listing:
    """What a source holds, and what is wrong with it."""

    where: str
    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)


def list_source(config: DataSetConfig, *, captions: bool = True, masks: bool = False) -> Listing:
    """Every picture of a data set, in the order of their names or lines.

    Args:
        config: The data set.
        captions: Whether captions are used: they must be there then.
        masks: Whether masks are used: they may be there then.
    """
    match config:
        case ImageDirDatasetConfig():
            return _list_folder(Path(config.dataset_dir), captions=False)
        case ImageCaptionDirDatasetConfig():
            return _list_folder(Path(config.dataset_dir), captions=captions)
        case ImageCaptionJsonlDatasetConfig():
            return _list_jsonl(config, captions=captions, masks=masks)
        case HFHubImageCaptionDatasetConfig():
            raise TypeError("Hub data sets are refused by the job model")
    raise TypeError(f"no source of this kind: {config}")


def _list_folder(folder: Path, *, captions: bool) -> Listing:
    listing = Listing(str(folder))
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        listing.faults.append(Fault(str(folder), "there is no such folder on this worker"))
        return listing
    except OSError as error:
        listing.faults.append(Fault(str(folder), f"cannot be read: {error.strerror}"))
        return listing
    names = [name for name in found if _is_unicode(name)]
    for name in sorted(set(found) - set(names)):
        shown = os.fsencode(name).decode("utf-8", "replace")
        listing.faults.append(Fault(shown, "has a name that is not UTF-8; rename it"))
    pictures = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    if not captions:
        listing.items = [Item(folder / name, name, "") for name in pictures[:MOST_ITEMS]]
        return _with_size_checked(listing, len(pictures))
    for name in pictures[:MOST_ITEMS]:
        caption_path = (folder / name).with_suffix(".txt")
        if not caption_path.is_file():
            listing.faults.append(Fault(name, f"has no caption; write it into {caption_path.name}"))
            continue
        _add(listing, folder / name, name, _caption_file(caption_path))
    stems = {Path(name).stem for name in pictures}
    for name in names:
        if name.endswith(".txt") and Path(name).stem not in stems:
            listing.warnings.append(Fault(name, "is the caption of no picture; it is not used"))
    return _with_size_checked(listing, len(pictures))


def _list_jsonl(config: ImageCaptionJsonlDatasetConfig, *, captions: bool, masks: bool) -> Listing:
    path = Path(config.jsonl_path)
    listing = Listing(str(path))
    try:
        if not path.is_file():
            listing.faults.append(Fault(str(path), "there is no such file on this worker"))
            return listing
        # Not splitlines(): captions may hold line separators that end no line of JSONL.
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        listing.faults.append(Fault(str(path), f"cannot be read: {error}"))
        return listing
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    for number, line in numbered[:MOST_ITEMS]:
        where = f"{path.name} line {number}"
        try:
            row = _row(line)
            image = _text(row, config.image_column)
            caption = _text(row, config.caption_column) if captions else None
            file = _inside(path.parent, image)
            mask = _text(row, config.mask_column) if masks and row.get(config.mask_column) else None
            mask_file = None if mask is None else _inside(path.parent, mask)
        except ValueError as error:
            listing.faults.append(Fault(where, str(error)))
            continue
        _add(listing, file, f"{where} ({image})", caption, mask_file)
    return _with_size_checked(listing, len(numbered))


def _row(line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    return row


def _text(row: dict[str, object], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"has no text in the column {column!r}")
    if not _is_unicode(value):
        raise ValueError(f"has half a character (a lone surrogate) in the column {column!r}")
    return value


def _inside(folder: Path, name: str) -> Path:
    """The file that a row names, which must lie in the JSONL file's folder, links followed."""
    try:
        file = (folder / name).resolve()
        is_inside, is_there = file.is_relative_to(folder.resolve()), file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a NUL
        raise ValueError(f"names {name!r}, which cannot be opened") from error
    if not is_inside:
        raise ValueError(f"names {name!r}, which is outside the data set's folder")
    if not is_there:
        raise ValueError(f"there is no picture {name}")
    return file


def _is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8, as JSON and the store need it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _caption_file(path: Path) -> str | Fault:
    try:
        if path.stat().st_size > MOST_CAPTION_BYTES:
            problem = f"is longer than {MOST_CAPTION_BYTES} bytes; captions are short"
            return Fault(path.name, problem)
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return Fault(path.name, f"cannot be read as UTF-8 text: {error}")


def _add(
    listing: Listing,
    path: Path,
    name: str,
    caption: str | Fault | None,
    mask: Path | None = None,
) -> None:
    if caption is None:
        listing.items.append(Item(path, name, "", mask))
    elif isinstance(caption, Fault):
        listing.faults.append(caption)
    elif not caption.strip():
        listing.faults.append(Fault(name, "has an empty caption; say what the picture shows"))
    elif len(caption.encode()) > MOST_CAPTION_BYTES:
        listing.faults.append(Fault(name, f"has a caption of over {MOST_CAPTION_BYTES} bytes"))
    else:
        listing.items.append(Item(path, name, caption.strip(), mask))


def _with_size_checked(listing: Listing, found: int) -> Listing:
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        listing.faults.append(Fault(listing.where, f"holds no picture ({kinds})"))
    if found > MOST_ITEMS:
        listing.faults.append(
            Fault(listing.where, f"holds {found:,} pictures; the most is {MOST_ITEMS:,}")
        )
    return listing
