"""Packs: cache entries of one encoder batch in one safetensors file of the store.

A pack's header tells which entries it holds, where, and the SHA-256 of each: what is read is
checked, and an index that was lost can be made anew from the packs alone. Knows bytes, no tensors.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tasks.errors import MissingObjectError, StoreError
from tasks.store import Store

# The key of a pack's metadata that holds the SHA-256 of each entry.
CHECKSUMS = "sha256"
# A header takes some 400 bytes an entry, and a pack holds no more entries than an encoder's batch.
_LONGEST_HEADER = 2**20
_LONGEST_ENTRY = 2**40


class DamagedPackError(Exception):
    """A pack, or an entry of one, is not what was written."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.message = key, problem

    def __str__(self) -> str:
        """The pack, and what is wrong."""
        return f"the cache pack {self.key} is damaged: {self.message}"


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of an entry.

    Attributes:
        dtype: Its safetensors name, such as ``F32``.
        start: Its first byte, counted from the entry's.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class PackedEntry:
    """An entry's place in its pack.

    Attributes:
        start: Its first byte, counted from the file's.
        sha256: See ``checksum``.
        tensors: By name.
    """

    start: int
    end: int
    sha256: str
    tensors: dict[str, TensorPlace]


def pack_id(digests: Iterable[str]) -> str:
    """The name of a pack of these entries: the same entries always make the same pack."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:32]


def checksum(tensors: Mapping[str, TensorPlace], data: bytes) -> str:
    """The SHA-256 of an entry: of its tensors' names, types and shapes, and of its bytes."""
    described = [[name, it.dtype, *it.shape, it.start, it.end] for name, it in tensors.items()]
    digest = hashlib.sha256(json.dumps(sorted(described)).encode())
    digest.update(data)
    return digest.hexdigest()


def read_header(store: Store, key: str) -> dict[str, PackedEntry]:
    """The entries of a pack by their digests.

    Raises:
        DamagedPackError: It is missing, or no pack.
        StoreError: The store failed.
    """
    start = 8 + int.from_bytes(_read(store, key, 0, 8), "little")
    if start > _LONGEST_HEADER:
        raise DamagedPackError(key, "no header")
    try:
        entries = _entries(json.loads(_read(store, key, 8, start)), start)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedPackError(key, "no header") from error
    if pack_id(entries) != PurePosixPath(key).stem:
        raise DamagedPackError(key, "it holds other entries")
    return entries


def read_entry(store: Store, key: str, entry: PackedEntry) -> bytes:
    """An entry's bytes, checked.

    Raises:
        DamagedPackError: They are not what was written.
        StoreError: The store failed.
    """
    data = _read(store, key, entry.start, entry.end)
    if checksum(entry.tensors, data) != entry.sha256:
        raise DamagedPackError(key, "the checksum differs")
    return data


def verify_pack(store: Store, key: str) -> None:
    """Read a whole pack.

    Raises:
        DamagedPackError: It is missing, or not what was written.
        StoreError: The store failed.
    """
    for entry in read_header(store, key).values():
        read_entry(store, key, entry)


def _entries(header: dict[str, Any], start: int) -> dict[str, PackedEntry]:
    checksums: dict[str, str] = json.loads(header.pop("__metadata__")[CHECKSUMS])
    tensors: dict[str, dict[str, Any]] = {digest: {} for digest in checksums}
    for name, value in header.items():
        digest, _, tensor = name.partition("/")
        tensors[digest][tensor] = value
    found = {}
    for digest, parts in tensors.items():
        offsets = [at for part in parts.values() for at in part["data_offsets"]]
        first, last = min(offsets), max(offsets)
        if not all(type(at) is int for at in offsets) or not 0 <= first <= last <= _LONGEST_ENTRY:
            raise ValueError("offsets that are none")
        places = {
            name: TensorPlace(
                part["dtype"], tuple(part["shape"]), *(at - first for at in part["data_offsets"])
            )
            for name, part in parts.items()
        }
        found[digest] = PackedEntry(start + first, start + last, checksums[digest], places)
    return found


def _read(store: Store, key: str, start: int, end: int) -> bytes:
    try:
        data = store.get_range(key, start, end)
    except MissingObjectError as error:
        raise DamagedPackError(key, "it is gone") from error
    except StoreError as error:
        # Stores have no word of their own for a range behind the end.
        if store.size(key) < end:
            raise DamagedPackError(key, "it is broken off") from error
        raise
    if len(data) != end - start:
        raise DamagedPackError(key, "it is broken off")
    return data
