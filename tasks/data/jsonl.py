"""Rows of a JSONL file: the image, caption and mask that each one names."""

import json
import os
import posixpath
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tasks.data.contents import Contents, name_key
from tasks.data.formats import READ, FileFormat, format_of_name
from tasks.data.listing import (
    MAX_EQUAL,
    MAX_PROBLEMS,
    Listing,
    SourceError,
    grouped,
    is_unicode,
    source_error,
)
from tasks.data.opening import open_resolved
from tasks.dataset import MAX_ITEMS
from tasks.errors import Problem
from tasks.escaping import listed, quoted, shortened
from tasks.jobs.datasets import ArchiveDatasetConfig, ImageCaptionJsonlDatasetConfig

# A million rows with long captions are smaller.
_MAX_BYTES = 2**30
# A caption of the longest kind, escaped, takes a third of it.
_MAX_LINE_BYTES = 2**20
USUAL_COLUMNS = {
    "image_column": ("image", "file_name", "image_path", "path", "file", "filename", "img"),
    "caption_column": ("text", "caption", "prompt", "captions", "description", "txt", "tags"),
}
"""Columns of other tools, the most usual ones first."""
# Of the columns of a file, these many are named.
_MAX_COLUMNS = 50
_FORM = 'write one JSON object a line: {"image": "a.png", "text": "a caption"}'


def column_remedy(option: str, column: str, columns: Sequence[str]) -> str:
    """Return which column an option should name instead of one that is missing."""
    same = [name for name in columns if name.casefold() == column.casefold()]
    usual = [name for name in USUAL_COLUMNS[option] if name in columns]
    found = same or usual or columns
    if len(found) == 1 or same or usual:
        return f"set {option}: {shortened(found[0])}"
    return f"set {option} to one of them" if columns else ""


@dataclass
class _MissingColumn:
    """The rows without text in a column.

    Attributes:
        column: The column.
        count: The number of these rows.
        lines: The first lines.
        columns: What these rows have, and whether it is text.
    """

    column: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
    columns: dict[str, bool] = field(default_factory=dict)

    def add(self, line: int, values: Mapping[str, object]) -> None:
        self.count += 1
        if len(self.lines) <= MAX_EQUAL:
            self.lines.append(line)
        for name, value in values.items():
            if name in self.columns or len(self.columns) < _MAX_COLUMNS:
                self.columns[name] = self.columns.get(name, False) or isinstance(value, str)

    def problems(
        self, option: str, name: str, rows: int, taken: set[str]
    ) -> Iterator[tuple[int, Problem]]:
        """Yield what to report, each with its line: one problem if many rows have it.

        Args:
            option: The option that names the column.
            name: The file's name.
            rows: The number of all rows.
            taken: The columns that options name.
        """
        if not self.count:
            return
        text = f"text in the column {self.column!r}"
        columns = f"the columns are {listed([*self.columns]) or 'missing'}"
        free = [it for it, is_text in self.columns.items() if is_text and it not in taken]
        remedy = column_remedy(option, self.column, free)
        if self.count == rows:
            yield self.lines[0], Problem(name, f"no row has {text}; {columns}", remedy)
        elif self.count > MAX_EQUAL:
            lines = ", ".join(map(str, self.lines))
            message = f"{self.count:,} of {rows:,} rows have no {text} (lines {lines}, ...)"
            yield self.lines[0], Problem(name, f"{message}; {columns}", remedy)
        else:
            for line in self.lines:
                yield line, Problem(f"{name} line {line}", f"has no {text}; {columns}", remedy)


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
        SourceError: The file cannot be read, or is no JSONL.
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
        self._listing, self._name = listing, name
        self._captions, self._masks = captions, masks
        self._mask_column = config.mask_column
        self._missing = {
            "image_column": _MissingColumn(config.image_column),
            "caption_column": _MissingColumn(config.caption_column),
        }
        self._count = 0
        self._rows: list[_Row] = []
        self._unused_masks: set[str] = set()
        problems: list[tuple[int, Problem]] = []
        for number, line in _lines(path):
            listing.check_stop()
            if not self._count:
                _check_form(line)
            self._count += 1
            if self._count > MAX_ITEMS or len(problems) > MAX_PROBLEMS:
                break
            try:
                self._add(number, _values(line))
            except ValueError as error:
                problems.append((number, Problem(f"{name} line {number}", str(error))))
        taken = {missing.column for missing in self._missing.values()}
        for option, missing in self._missing.items():
            problems += missing.problems(option, name, self._count, taken)
        listing.problems += [it for _, it in sorted(problems, key=lambda pair: pair[0])]

    def _add(self, number: int, values: dict[str, object]) -> None:
        """Add a row.

        Raises:
            ValueError: A value cannot be used.
        """
        image = self._text(number, values, "image_column")
        caption = self._text(number, values, "caption_column") if self._captions else None
        mask = values.get(self._mask_column) or None
        if not self._masks:
            self._unused_masks |= {mask} if isinstance(mask, str) else set()
            mask = None
        if mask is not None and not isinstance(mask, str):
            raise ValueError(f"has no text in the column {self._mask_column!r}")
        if image is not None and (caption is not None or not self._captions):
            self._rows.append(_Row(f"{self._name} line {number}", image, caption, mask))

    def _text(self, number: int, values: dict[str, object], option: str) -> str | None:
        """Return the text in a row's column; count the row if it has none."""
        missing = self._missing[option]
        value = values.get(missing.column)
        if not isinstance(value, str):
            missing.add(number, values)
            return None
        if not is_unicode(value):
            message = f"has half a character (a lone surrogate) in the column {missing.column!r}"
            raise ValueError(message)
        return value

    def file_names(self) -> list[str]:
        """Return the names of all images and masks that stay inside the dataset, sorted."""
        return sorted({name for row in self._rows for name in row.files if _is_inside(name)})

    def resolve(self, find: Callable[[str], Path], names: Sequence[str] | None = None) -> Listing:
        """Return the listing with the rows' images.

        Args:
            find: Returns the file of a name; raises ValueError if it is missing or not allowed.
            names: All names below the file's folder, if they are known: of equal names, which
                differ in case or Unicode form, the only one is found, and what no row names is
                reported.
        """
        by_key: dict[str, list[str]] = defaultdict(list)
        for name in names or ():
            by_key[name_key(name)].append(name)
        used = {posixpath.normpath(name) for name in self._unused_masks}

        def found(name: str) -> Path:
            try:
                file = find(name)
            except ValueError:
                same = by_key.get(name_key(posixpath.normpath(name)), [])
                if len(same) != 1:
                    raise
                [name] = same
                file = find(name)
            used.add(posixpath.normpath(name))
            return file

        for row in self._rows:
            same = by_key.get(name_key(posixpath.normpath(row.image)), [])
            if same and (format := _unread_format(row.image)):
                used.update(same)
                name = f"{row.location} ({shortened(row.image)})"
                self._listing.warnings.append(Problem(name, format.refusal, format.remedy))
                continue
            try:
                file = found(row.image)
                mask = None if row.mask is None else found(row.mask)
            except ValueError as error:
                self._listing.problems.append(Problem(row.location, str(error)))
            else:
                name = f"{row.location} ({shortened(row.image)})"
                self._listing.add(file, name, row.caption, mask)
        self._listing.check_count(self._count)
        # Which files the other rows name is unknown.
        if names is not None and len(self._rows) == self._count:
            self._report_unused(Contents(names), used)
        return self._listing

    def _report_unused(self, contents: Contents, used: set[str]) -> None:
        """Report the files beside the rows' ones."""
        listing, rows = self._listing, self._name
        messages = {
            f"is named by no row of {rows}; it is not used": contents.images,
            f"is not used: captions are in the rows of {rows}": contents.captions,
        }
        for message, files in messages.items():
            unused = (name for name in files if name not in used)
            listing.warnings += grouped(Problem(name, message) for name in unused)
        used.add(PurePosixPath(rows).name)
        listing.warnings += grouped(contents.findings(listing.location, used))
        if self._unused_masks:
            message = f"names {len(self._unused_masks):,} masks, which are not used"
            listing.warnings.append(Problem(rows, message, "set use_masks"))


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
        raise _missing(name)
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
        raise _missing(name)
    return file


def _missing(name: str) -> ValueError:
    remedy = "; write '/' between folders, not '\\'" if "\\" in name else ""
    return ValueError(f"there is no image {shortened(name) or quoted(name)}{remedy}")


def _unread_format(name: str) -> FileFormat | None:
    format = format_of_name(name)
    return None if format in READ else format


def _is_inside(name: str) -> bool:
    """Return whether a relative name stays below the folder where it starts."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "://" not in name


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a JSONL file that are not blank, with their numbers.

    Of a longer line, one byte more than the maximum is yielded.
    """
    try:
        with open_resolved(path) as file:
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                raise SourceError(f"is larger than {_MAX_BYTES // 2**20} MiB")
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


def _check_form(line: bytes) -> None:
    """Refuse a file of another form by its first line, before each of its lines is a problem.

    Raises:
        SourceError: The file is something else that people take for JSONL.
    """
    start = line.strip()
    if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in start:
        raise SourceError("is UTF-16 text or no text; save it as UTF-8")
    if start.startswith(b"["):
        raise SourceError(f"is a JSON array; {_FORM}")
    if start == b"{":
        raise SourceError(f"is one JSON document in several lines; {_FORM}")
    if not start.startswith(b"{") and not _is_json(start) and re.search(b"[,;\t]", start):
        raise SourceError(f"is CSV, not JSONL; {_FORM}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


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
    except ValueError as error:  # Python's own names a function to call
        raise ValueError("is not JSON: it has a number of too many digits") from error
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object")
    return values
