"""safetensors files whose bytes depend only on their contents, written and read tensor by tensor.

``safetensors.save_file`` writes its header in another order each time and the file with mode 0600.
Its readers map the file: what was read stays resident. The state of a finetune is larger than many
machines' memory.

The format is that of the safetensors project: a length, a JSON header, the data.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.uint8: "U8",
}
DTYPES = {name: dtype for dtype, name in TYPE_NAMES.items()}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Write a file atomically, the same bytes for the same contents.

    Needs the host memory of the largest tensor, wherever the tensors are.

    Args:
        path: The file; its folder exists.
        tensors: The tensors by name, on any device.
        metadata: Entries for the header.
        dtype: The precision of floating-point tensors in the file; None keeps their own.
        digests: The entries of the header that get the SHA-256 of the data, each with how it spells
            the digest: ``0x{}``.
    """
    partial = path.with_name(path.name + ".partial")
    sha256 = hashlib.sha256()

    def header() -> bytes:
        found = {
            name: form.format(sha256.hexdigest()) for name, form in dict(digests or {}).items()
        }
        return header_bytes(tensors, {**(metadata or {}), **found}, dtype)

    with partial.open("wb") as file:
        file.write(header())  # of the right length; its digests are not known yet
        for _, tensor in sorted(tensors.items()):
            data = raw_bytes(tensor.detach().to(dtype=_saved_dtype(tensor, dtype)))
            file.write(data)
            if digests:
                sha256.update(data)
        if digests:
            file.seek(0)
            file.write(header())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class SafetensorsFile(Mapping[str, torch.Tensor]):
    """The tensors of a file, each read when it is asked for. A context manager.

    Args:
        path: The file.

    Raises:
        SafetensorError: The header is damaged, or does not fit the file.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as checked:
            self.metadata: dict[str, str] = checked.metadata() or {}
        self._file = path.open("rb")
        length = int.from_bytes(self._file.read(8), "little")
        self._entries: dict[str, Any] = json.loads(self._file.read(length))
        self._entries.pop("__metadata__", None)
        self._start = 8 + length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor in memory of its own.

        Raises:
            KeyError: The file has no such tensor, or one of another type.
        """
        entry = self._entries[name]
        start, end = entry["data_offsets"]
        data = torch.empty(end - start, dtype=torch.uint8)
        self._file.seek(self._start + start)
        self._file.readinto(data.numpy().data)
        return data.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def digest(self) -> str:
        """Return the SHA-256 of the data."""
        self._file.seek(self._start)
        return hashlib.file_digest(self._file, "sha256").hexdigest()


def header_bytes(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> bytes:
    """Return the first bytes of a file; the tensors' raw bytes follow, sorted by name.

    Args:
        tensors: The tensors by name.
        metadata: Entries for the header.
        dtype: The precision of floating-point tensors in the file; None keeps their own.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        saved = _saved_dtype(tensor, dtype)
        start, end = end, end + tensor.numel() * saved.itemsize
        header[name] = {
            "dtype": TYPE_NAMES[saved],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes as a file holds them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy has no bfloat16, so the bytes go through uint8.
    return flat.view(torch.uint8).numpy().tobytes()


def _saved_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
