"""The header of a safetensors file: its tensors' names, types and shapes, without torch."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import BaseModelFilesError

MAX_HEADER_BYTES = 100_000_000
"""safetensors itself refuses longer headers."""
# Of a model and of a name; the largest models have some 10,000 tensors, with their quantization.
# Each name is compared with all layouts and all other models: more would take minutes.
_MAX_TENSORS, _MAX_NAME_LENGTH = 30_000, 250
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
# How files begin that people rename to .safetensors, or get instead of one.
_OTHER_FILES = {
    b"GGUF": "it is a GGUF file, whose weights are quantized; use the model's .safetensors file",
    b"PK\x03\x04": "it is a pickle checkpoint, which can run code; use a .safetensors file",
    b"\x80\x02": "it is a pickle checkpoint, which can run code; use a .safetensors file",
    b"version ": "it is a pointer of Git LFS, not the file itself; get it with git lfs pull",
    b"<": "it is a web page, not a safetensors file; download it again, logged in if need be",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        file: The file.
        dtype: safetensors' name of its type, such as ``BF16`` or ``F8_E4M3``.
        shape: Its shape.
        start: Where its data begins in the file, in bytes.
        end: Where its data ends.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> bytes:
        """Return the data."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


@dataclass(frozen=True)
class Header:
    """The header of one file, or of several that hold one model.

    Attributes:
        path: The file, or the folder of the files.
        tensors: Its tensors by name.
        metadata: The texts that its author added.
    """

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_headers(folder: Path, files: Iterable[Path]) -> Header:
    """Return the header of a model in several files.

    Raises:
        BaseModelFilesError: A file is missing, damaged, truncated or something else.
    """
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        tensors |= read_header(file).tensors
        _refuse_excess(folder, tensors)
    return Header(folder, tensors, {})


def read_header(path: Path) -> Header:
    """Return the header of a complete safetensors file.

    Raises:
        BaseModelFilesError: The file is missing, damaged, truncated or something else.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        size = None  # a path that cannot exist
    if size is None:
        raise BaseModelFilesError(str(path), "there is no such file on this worker")
    try:
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise BaseModelFilesError(str(path), _what_else(first))
            values = json.loads(file.read(length))
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it has a damaged safetensors header"
        raise BaseModelFilesError(str(path), reason) from error
    except ValueError as error:
        raise BaseModelFilesError(str(path), "it has a damaged safetensors header") from error
    return _header(path, values, 8 + length, size)


def _header(path: Path, values: Any, start: int, size: int) -> Header:
    try:
        metadata = values.pop("__metadata__", None) or {}
        _refuse_excess(path, values)
        tensors = {str(name): _entry(path, entry, start) for name, entry in values.items()}
        texts = {str(key): str(value) for key, value in metadata.items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BaseModelFilesError(str(path), "it has a damaged safetensors header") from error
    # As safetensors requires: the tensors fill the file, without gaps and overlaps.
    ends = [start, *sorted(entry.end for entry in tensors.values())]
    if ends[-1] != size or ends[:-1] != sorted(entry.start for entry in tensors.values()):
        raise BaseModelFilesError(str(path), "it is truncated or damaged; download it again")
    return Header(path, tensors, texts)


def _refuse_excess(path: Path, names: Collection[str]) -> None:
    if len(names) > _MAX_TENSORS:
        problem = f"it has {len(names):,} tensors; no model has more than {_MAX_TENSORS:,}"
        raise BaseModelFilesError(str(path), problem)
    if (longest := max(map(len, names), default=0)) > _MAX_NAME_LENGTH:
        problem = f"it has a tensor's name of {longest:,} characters; no model has one"
        raise BaseModelFilesError(str(path), problem)


def _entry(path: Path, entry: Any, start: int) -> TensorEntry:
    first, last = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    size = _BYTES.get(str(entry["dtype"]))
    if not 0 <= first <= last or (size is not None and last - first != math.prod(shape) * size):
        raise ValueError(f"{shape} in {last - first} bytes")
    return TensorEntry(path, str(entry["dtype"]), shape, start + first, start + last)


def _what_else(first: bytes) -> str:
    others = (what for start, what in _OTHER_FILES.items() if first.startswith(start))
    return next(others, "it is not a safetensors file, or is truncated")
