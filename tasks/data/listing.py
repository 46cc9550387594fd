"""Listings of a dataset: which file is an image, and which caption and mask belong to it.

A listing is made of a mapping from names to local files, by caption files or by the rows of a JSONL
file. It reads captions, but no image.
"""

import json
import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tasks.data.formats import READ_NAMES, SUFFIXES
from tasks.data.opening import open_resolved
from tasks.dataset import MAX_CAPTION_BYTES, MAX_ITEMS
from tasks.errors import Problem
from tasks.escaping import quoted, shortened
from tasks.jobs.datasets import ArchiveDatasetConfig, ImageCaptionJsonlDatasetConfig

MAX_PROBLEMS = 1000
"""A dataset with more problems is not checked to its end: they have one systematic cause."""
# A million rows with long captions are smaller.
_MAX_JSONL_BYTES = 2**30
# A caption of the longest kind, escaped, takes a third of it.
_MAX_LINE_BYTES = 2**20


class SourceError(Exception):
    """A dataset cannot be read at all; the message says why."""


def source_error(error: OSError, kind: str) -> SourceError:
    """Return the error of a ``file`` or ``folder`` that cannot be opened."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return SourceError(f"there is no such {kind} on this worker")
    return SourceError(f"cannot be read: {error.strerror or error}")


@dataclass(frozen=True)
class Item:
    """One image with its caption.

    Attributes:
        path: The image's file.
        name: The image's name in messages.
        caption: The caption, stripped; empty if none is used.
        mask: The mask's file, if there is one and it is used.
        part: The index of the data loader's source.
    """

    path: Path
    name: str
    caption: str
    mask: Path | None = None
    part: int = 0


@dataclass
class Listing:
    """The images of a source, and the problems found.

    Attributes:
        location: The source, as messages name it.
        items: The images without a problem.
        problems: What ends the job.
        warnings: What does not.
        check_stop: Called for each image; an exception that it raises ends the listing.
    """

    location: str
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    check_stop: Callable[[], object] = field(default=lambda: None, repr=False, compare=False)

    def add(
        self, path: Path, name: str, caption: str | Problem | None, mask: Path | None = None
    ) -> None:
        """Add an image, or the problem of its caption.

        Args:
            path: The image's file.
            name: The image's name in messages.
            caption: The caption, or why it cannot be read; None if none is used.
            mask: The mask's file, if it is used.
        """
        self.check_stop()
        if caption is None:
            self.items.append(Item(path, name, "", mask))
        elif isinstance(caption, Problem):
            self.problems.append(caption)
        elif not caption.strip():
            self.problems.append(Problem(name, "has an empty caption", "describe the image"))
        elif len(caption.encode()) > MAX_CAPTION_BYTES:
            self.problems.append(Problem(name, f"has a caption of over {MAX_CAPTION_BYTES} bytes"))
        else:
            self.items.append(Item(path, name, caption.strip(), mask))

    def check_count(self, count: int) -> None:
        """Add a problem if a source has no image or too many.

        Args:
            count: The number of images in the source, with and without problems.
        """
        if not count:
            self.problems.append(Problem(self.location, f"has no image ({READ_NAMES})"))
        if count > MAX_ITEMS:
            message = f"has over {MAX_ITEMS:,} images, the maximum"
            self.problems.append(Problem(self.location, message))


def pair_captions(listing: Listing, files: Mapping[str, Path], *, captions: bool) -> Listing:
    """Add the images among files to a listing, each with the caption file of its name.

    Args:
        listing: Receives the images.
        files: The local files by name.
        captions: Whether captions are used.
    """
    images = [name for name in sorted(files) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    listing.check_count(len(images))
    if not captions:
        listing.items = [Item(files[name], name, "") for name in images[:MAX_ITEMS]]
        return listing
    for name in images[:MAX_ITEMS]:
        caption_name = str(PurePosixPath(name).with_suffix(".txt"))
        if caption_name in files:
            listing.add(files[name], name, _read_caption(files[caption_name], caption_name))
        else:
            remedy = f"write it into {PurePosixPath(caption_name).name}"
            listing.problems.append(Problem(name, "has no caption", remedy))
    stems = {str(PurePosixPath(name).with_suffix("")) for name in images}
    for name in sorted(files):
        if name.endswith(".txt") and str(PurePosixPath(name).with_suffix("")) not in stems:
            message = "belongs to no image; it is not used"
            listing.warnings.append(Problem(name, message))
    return listing


@dataclass(frozen=True)
class _Row:
    location: str
    image: str
    caption: str | None
    mask: str | None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.image,) if self.mask is None else (self.image, self.mask)


class JsonlRows:
    """The rows of a JSONL file.

    Args:
        listing: Receives the problems of rows, and later the images.
        config: Names the columns.
        path: The file.
        name: The file's name in messages.
        captions: Whether captions are used.
        masks: Whether masks are used.

    Raises:
        SourceError: The file cannot be read.
    """

    def __init__(
        self,
        listing: Listing,
        config: ImageCaptionJsonlDatasetConfig | ArchiveDatasetConfig,
        path: Path,
        name: str,
        *,
        captions: bool,
        masks: bool,
    ) -> None:
        self._listing = listing
        self._count = 0
        self._rows: list[_Row] = []
        for number, line in _lines(path):
            listing.check_stop()
            self._count += 1
            if self._count > MAX_ITEMS or len(listing.problems) > MAX_PROBLEMS:
                break
            location = f"{name} line {number}"
            try:
                values = _values(line)
                image = _text(values, config.image_column)
                caption = _text(values, config.caption_column) if captions else None
                has_mask = masks and values.get(config.mask_column)
                mask = _text(values, config.mask_column) if has_mask else None
            except ValueError as error:
                listing.problems.append(Problem(location, str(error)))
            else:
                self._rows.append(_Row(location, image, caption, mask))

    def file_names(self) -> list[str]:
        """Return the names of all images and masks that stay inside the dataset, sorted."""
        return sorted({name for row in self._rows for name in row.files if _is_inside(name)})

    def resolve(self, find: Callable[[str], Path]) -> Listing:
        """Return the listing with the rows' images.

        Args:
            find: Returns the file of a name; raises ValueError if it is missing or not allowed.
        """
        for row in self._rows:
            try:
                mask = None if row.mask is None else find(row.mask)
                file = find(row.image)
            except ValueError as error:
                self._listing.problems.append(Problem(row.location, str(error)))
            else:
                name = f"{row.location} ({shortened(row.image)})"
                self._listing.add(file, name, row.caption, mask)
        self._listing.check_count(self._count)
        return self._listing


def find_in_folder(folder: Path, name: str) -> Path:
    """Return the file that a row names, which must be in a folder, with links resolved.

    Args:
        folder: The folder, with links resolved.
        name: The name, relative to it.

    Raises:
        ValueError: The file is missing or outside the folder.
    """
    try:
        file = (folder / name).resolve()
        is_inside = file.is_relative_to(folder)
        # Nothing is revealed of a file outside.
        is_file = is_inside and file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a NUL
        raise ValueError(f"names {quoted(name)}, which cannot be opened") from error
    if not is_inside:
        raise ValueError(f"names {quoted(name)}, which is outside the dataset's folder")
    if not is_file:
        raise ValueError(f"there is no image {shortened(name)}")
    return file


def find_in_files(files: Mapping[str, Path], folder: PurePosixPath, name: str) -> Path:
    """Return the file that a row names, from files by name.

    Raises:
        ValueError: The file is missing or outside the dataset.
    """
    if not _is_inside(name):
        raise ValueError(f"names {quoted(name)}, which is outside the dataset's folder")
    file = files.get(str(folder / name))
    if file is None:
        raise ValueError(f"there is no image {shortened(name)}")
    return file


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8, which JSON and the store need."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_inside(name: str) -> bool:
    """Return whether a relative name stays below the folder where it starts."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "://" not in name


def _read_caption(path: Path, name: str) -> str | Problem:
    try:
        with open_resolved(path) as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
        if len(data) > MAX_CAPTION_BYTES:
            return Problem(name, f"is longer than {MAX_CAPTION_BYTES} bytes; captions are short")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return Problem(name, f"cannot be read as UTF-8 text: {error}", "save it as UTF-8")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a JSONL file that are not blank, with their numbers.

    Of a longer line, one byte more than the maximum is yielded.
    """
    try:
        with open_resolved(path) as file:
            if os.fstat(file.fileno()).st_size > _MAX_JSONL_BYTES:
                raise SourceError(f"is larger than {_MAX_JSONL_BYTES // 2**20} MiB")
            number = 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                rest = line
                while len(rest) > _MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(_MAX_LINE_BYTES + 1)
                if number == 1:
                    line = line.removeprefix(BOM_UTF8)
                if line.strip():
                    yield number, line
    except OSError as error:
        raise source_error(error, "file") from error


def _values(line: bytes) -> dict[str, object]:
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"is longer than {_MAX_LINE_BYTES:,} bytes, the maximum")
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object")
    return values


def _text(values: dict[str, object], column: str) -> str:
    value = values.get(column)
    if not isinstance(value, str):
        raise ValueError(f"has no text in the column {column!r}")
    if not is_unicode(value):
        raise ValueError(f"has half a character (a lone surrogate) in the column {column!r}")
    return value
