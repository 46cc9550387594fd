"""Reads images and captions from a parquet file, in the memory that its footer declares."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.data.decoding.archive_members import DISK_ERRNOS, MAX_GROWTH, MIB, SMALL_BYTES
from tasks.data.decoding.image_check import MAX_FILE_BYTES
from tasks.data.decoding.image_file import MAX_DECODING_BYTES
from tasks.data.formats import SUFFIXES

# A footer takes some ten times its size when it is parsed; a usual one has kilobytes.
MAX_FOOTER_BYTES = 16 * MIB
# pyarrow itself, and a footer.
_PYARROW_BYTES = 320 * MIB
# A row group of this size is read whatever its packed size.
_SMALL_GROUP_BYTES = 64 * MIB
# Rows that are held at a time, and their bytes if they are large.
_BATCH_ROWS, _BATCH_BYTES = 32, 32 * MIB
# A page is held packed and unpacked, and its rows are copied.
_COPIES = 3
_BOMB = (
    f"unpacks to over {MAX_GROWTH} times its size, which images do not; "
    "it looks like a decompression bomb"
)


class UnreadableParquetError(ValueError):
    """A parquet file cannot be read; the message says why."""


class RowLimitError(Exception):
    """A file has more rows or bytes than are read; the argument is ``rows`` or ``bytes``."""


@dataclass
class RowWriter:
    """Writes the images of rows into a folder, and sends what is in the rows.

    A row is sent as ``{"file", "name", "caption"}`` or ``{"problem"}``.

    Attributes:
        folder: The folder for the images, which are named by their rows' numbers.
        columns: The image column and, if captions are used, the caption column.
        number: The number of the next row.
        max_rows: The maximum of that number.
        max_bytes: The maximum that is written.
        max_caption_bytes: The maximum length of a caption.
    """

    folder: Path
    columns: list[str]
    number: int
    max_rows: int
    max_bytes: int
    max_caption_bytes: int

    def write(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Write a row's image, and return the row as it is sent.

        Raises:
            RowLimitError: There are too many rows or bytes.
        """
        if self.number == self.max_rows:
            raise RowLimitError("rows")
        self.number += 1
        try:
            data, name = _image(values[0])
            caption = self._caption(values[1]) if len(values) > 1 else None
        except ValueError as error:
            return {"problem": str(error)}
        if len(data) > self.max_bytes:
            raise RowLimitError("bytes")
        self.max_bytes -= len(data)
        file = self.folder / f"{self.number - 1:08}{_suffix(name)}"
        file.write_bytes(data)
        return {"file": str(file), "name": name, "caption": caption}

    def _caption(self, scalar: Any) -> str:
        value = _python(scalar)
        if isinstance(value, list) and value:
            value = value[0]  # an image with several captions gets the first one
        if not isinstance(value, str):
            raise ValueError(f"has no text in the column {self.columns[1]!r}")
        # Checked here, too, so that such captions are not collected in memory.
        if len(value) > self.max_caption_bytes:
            raise ValueError(f"has a caption of over {self.max_caption_bytes} bytes")
        return value


def read_rows(
    path: Path,
    writer: RowWriter,
    reserve: Callable[[int], None],
    send: Callable[[list[dict[str, Any]]], None],
) -> dict[str, Any]:
    """Write the rows of a parquet file.

    Args:
        path: The parquet file.
        writer: Writes the rows.
        reserve: Waits until another number of bytes of memory is available.
        send: Receives the rows, a few at a time.

    Returns:
        ``columns``, the names of all columns, if a wanted one is missing; ``exceeded``, ``rows`` or
        ``bytes``, if the file has more than is read; ``bytes_left`` otherwise.

    Raises:
        UnreadableParquetError: The file is damaged, or unpacks to too many bytes.
    """
    reserve(_PYARROW_BYTES)
    size, max_bytes = path.stat().st_size, writer.max_bytes
    _check_footer(path, size)
    pyarrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    # Each thread would hold pages.
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    try:
        # Not buffered ahead: a row group of images can be gigabytes.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if any(names.count(column) != 1 for column in writer.columns):
                return {"columns": names}
            for batch in _batches(file, size, writer.columns, reserve):
                values = zip(*(batch.column(column) for column in writer.columns), strict=True)
                exceeded = _write_all(writer, values, send)
                if exceeded:
                    return {"exceeded": exceeded}
                # Rows may share the one value of a dictionary.
                if max_bytes - writer.max_bytes > max(SMALL_BYTES, MAX_GROWTH * size):
                    raise UnreadableParquetError(_BOMB)
    except pyarrow.ArrowMemoryError as error:
        message = "takes too much memory to read; write it with smaller row groups"
        raise UnreadableParquetError(message) from error
    # UnicodeDecodeError: a column's name.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) in DISK_ERRNOS:
            raise
        raise UnreadableParquetError(
            f"is damaged or cannot be read: {error}".partition("\n")[0]
        ) from error
    return {"bytes_left": writer.max_bytes}


def _write_all(
    writer: RowWriter,
    rows: Iterable[tuple[Any, ...]],
    send: Callable[[list[dict[str, Any]]], None],
) -> str:
    """Write and send rows, and return the limit that they exceed; empty for none."""
    written: list[dict[str, Any]] = []
    try:
        written.extend(writer.write(values) for values in rows)
        return ""
    except RowLimitError as error:
        return str(error)
    finally:
        send(written)


def _check_footer(path: Path, size: int) -> None:
    """Refuse a large footer, which pyarrow would parse whole."""
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
    if MAX_FOOTER_BYTES < length < size:
        raise UnreadableParquetError(f"has a footer of over {MAX_FOOTER_BYTES // MIB} MiB")


def _batches(
    file: Any, size: int, columns: list[str], reserve: Callable[[int], None]
) -> Iterator[Any]:
    """Yield a file's rows in batches.

    The memory for the largest row group is reserved. A footer that declares less than it unpacks to
    fails for want of memory.

    Raises:
        UnreadableParquetError: A row group unpacks to too many bytes.
    """
    groups = [
        _group_bytes(file.metadata.row_group(n), size, columns) for n in range(file.num_row_groups)
    ]
    reserve(min(_COPIES * max(groups, default=0), MAX_DECODING_BYTES - _PYARROW_BYTES))
    for number, group_bytes in enumerate(groups):
        row_bytes = group_bytes // max(1, file.metadata.row_group(number).num_rows)
        rows = min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)) or 1
        yield from file.iter_batches(
            batch_size=rows, row_groups=[number], columns=columns, use_threads=False
        )


def _group_bytes(group: Any, file_bytes: int, columns: list[str]) -> int:
    """Return the size of a row group's wanted columns, unpacked.

    Raises:
        UnreadableParquetError: It is so large that the file looks like a decompression bomb.
    """
    packed = unpacked = 0
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema.partition(".")[0] in columns:
            packed += max(0, column.total_compressed_size)
            unpacked += max(0, column.total_uncompressed_size)
    if unpacked > max(_SMALL_GROUP_BYTES, MAX_GROWTH * min(packed, file_bytes)):
        raise UnreadableParquetError(_BOMB)
    return unpacked


def _image(scalar: Any) -> tuple[bytes, str]:
    """Return a row's image bytes, and the name of its file; empty if absent or not printable."""
    value = _python(scalar)
    data, path = value, None
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    if not isinstance(data, bytes) or not data:
        raise ValueError("has no image bytes; paths and URLs are not followed")
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"has an image of over {MAX_FILE_BYTES // MIB} MiB")
    file_name = path.rpartition("/")[2] if isinstance(path, str) else ""
    return data, file_name[-100:] if file_name.isprintable() else ""


def _python(scalar: Any) -> object:
    """Return a scalar's value.

    Raises:
        ValueError: Python cannot hold the value: text that is not UTF-8, a date in the year 20,000.
    """
    try:
        value: object = scalar.as_py()
    except (ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f"cannot be read: {error}".partition("\n")[0]) from error
    return value


def _suffix(file_name: str) -> str:
    """Return a file name's suffix if it is an image's, else ``.png``."""
    suffix = PurePosixPath(file_name).suffix.lower()
    return suffix if suffix in SUFFIXES else ".png"
