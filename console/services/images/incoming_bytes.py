"""Bytes of an upload on their way from a sender to a file."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anyio import CancelScope

from console.errors import (
    ChecksumError,
    InsufficientStorageError,
    TooLargeError,
    TooSlowError,
)
from console.services.threads import in_thread

IDLE_TIMEOUT_S = 60.0
"""Idle time after which a sender has lost its connection, and another request may continue."""
_WRITE_BYTES = 2**20

CHECKSUMS = ("sha1", "sha256")
"""Algorithms of ``Upload-Checksum``."""


@dataclass(frozen=True)
class Checksum:
    """Expected checksum of a chunk.

    Attributes:
        algorithm: One of ``CHECKSUMS``.
        digest: The chunk's digest.
    """

    algorithm: str
    digest: bytes


async def append(
    path: Path, chunks: AsyncIterator[bytes], max_bytes: int, checksum: Checksum | None
) -> None:
    """Append the chunks to a file, including those received before an interruption."""
    digest = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
    batch, is_valid = bytearray(), checksum is None
    start = file_size(path)
    with path.open("ab") as file:
        try:
            async for chunk in _until_idle(chunks):
                max_bytes -= len(chunk)
                if max_bytes < 0:
                    raise TooLargeError("received more bytes than announced, or than allowed")
                batch += chunk
                if digest is not None:
                    digest.update(chunk)
                if len(batch) >= _WRITE_BYTES:
                    # Emptied first: a cancelled write must not be repeated below.
                    data, batch = bytes(batch), bytearray()
                    await in_thread(file.write)(data)
            if checksum is not None and digest is not None:
                is_valid = digest.digest() == checksum.digest
                if not is_valid:
                    raise ChecksumError(
                        "received bytes differ from Upload-Checksum; send them again"
                    )
        finally:
            with CancelScope(shield=True):
                await in_thread(_flush)(file, bytes(batch), None if is_valid else start)


async def _until_idle(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks until the sender is idle for too long: a lost connection may stay open."""
    while True:
        try:
            yield await asyncio.wait_for(anext(chunks), IDLE_TIMEOUT_S)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise TooSlowError("no data arrived for too long; resume from Upload-Offset") from error


def _flush(file: BinaryIO, batch: bytes, truncate_to: int | None) -> None:
    """Write the rest of a chunk, or discard all of an invalid one."""
    file.write(batch)
    file.flush()
    if truncate_to is not None:
        file.truncate(truncate_to)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Report a full disk.

    Raises:
        InsufficientStorageError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InsufficientStorageError("the disk is full; send the rest later") from error


def file_size(path: Path) -> int:
    """Return the size of a file, which other hosts may write to: opening it asks its server."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
