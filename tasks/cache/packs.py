"""Packs: the cache entries of one encoder batch in one safetensors file of the store.

A pack's header lists its entries, their places and the SHA-256 of each: every read is verified, and
the fleet's index can be rebuilt from the packs alone. Handles bytes, not tensors.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tasks.errors import MissingObjectError, StoreError
from tasks.store import Store

CHECKSUMS = "sha256"
"""The key of the SHA-256 of each entry in a pack's metadata."""

# A header has about 400 bytes per entry, and a pack has at most the entries of an encoder's batch:
# larger numbers are damage, and must not be allocated.
_MAX_HEADER_BYTES = 2**20
_MAX_ENTRY_BYTES = 2**40


class DamagedPackError(Exception):
    """A pack differs from what was written."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.message = key, problem

    def __str__(self) -> str:
        """Return the pack and its problem."""
        return f"the cache pack {self.key} is damaged: {self.message}"


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in an entry.

    Attributes:
        dtype: Its safetensors name, such as ``F32``.
        start: Its first byte, relative to the entry.
        end: The byte after its last one, relative to the entry.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class PackedEntry:
    """An entry in a pack.

    Attributes:
        start: Its first byte in the file.
        end: The byte after its last one.
        sha256: Its checksum; see ``checksum``.
        tensors: Its tensors by name.
    """

    start: int
    end: int
    sha256: str
    tensors: dict[str, TensorPlace]


def pack_id(digests: Iterable[str]) -> str:
    """Return the id of the pack of these entries: the same entries always have the same pack."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:32]


def checksum(tensors: Mapping[str, TensorPlace], data: bytes) -> str:
    """Return the SHA-256 of an entry: the layout of its tensors, and its bytes."""
    layout = [[name, at.dtype, *at.shape, at.start, at.end] for name, at in tensors.items()]
    digest = hashlib.sha256(json.dumps(sorted(layout)).encode())
    digest.update(data)
    return digest.hexdigest()


def read_header(store: Store, key: str) -> dict[str, PackedEntry]:
    """Return the entries of a pack by digest.

    Raises:
        DamagedPackError: The pack is missing or malformed.
        StoreError: The store failed.
    """
    start = 8 + int.from_bytes(_read(store, key, 0, 8), "little")
    if start > _MAX_HEADER_BYTES:
        raise DamagedPackError(key, "its header is malformed")
    try:
        entries = _entries(json.loads(_read(store, key, 8, start)), start)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedPackError(key, "its header is malformed") from error
    if pack_id(entries) != PurePosixPath(key).stem:
        raise DamagedPackError(key, "it has other entries")
    return entries


def read_entry(store: Store, key: str, entry: PackedEntry) -> bytes:
    """Return an entry's bytes, verified.

    Raises:
        DamagedPackError: They differ from what was written.
        StoreError: The store failed.
    """
    data = _read(store, key, entry.start, entry.end)
    if checksum(entry.tensors, data) != entry.sha256:
        raise DamagedPackError(key, "a checksum differs")
    return data


def verify_pack(store: Store, key: str) -> None:
    """Read and verify a whole pack.

    Raises:
        DamagedPackError: The pack is missing, or differs from what was written.
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
    entries = {}
    for digest, parts in tensors.items():
        offsets = [at for part in parts.values() for at in part["data_offsets"]]
        first, last = min(offsets), max(offsets)
        if not all(type(at) is int for at in offsets) or not 0 <= first <= last <= _MAX_ENTRY_BYTES:
            raise ValueError("invalid offsets")
        places = {
            name: TensorPlace(
                part["dtype"], tuple(part["shape"]), *(at - first for at in part["data_offsets"])
            )
            for name, part in parts.items()
        }
        entries[digest] = PackedEntry(start + first, start + last, checksums[digest], places)
    return entries


def _read(store: Store, key: str, start: int, end: int) -> bytes:
    try:
        data = store.get_range(key, start, end)
    except MissingObjectError as error:
        raise DamagedPackError(key, "it is missing") from error
    except StoreError as error:
        # Stores have no specific error for a range beyond the end.
        if store.size(key) < end:
            raise DamagedPackError(key, "it is truncated") from error
        raise
    if len(data) != end - start:
        raise DamagedPackError(key, "it is truncated")
    return data
