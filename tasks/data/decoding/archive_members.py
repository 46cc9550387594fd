"""What the readers of zips and tars share: members, errors, the count of unpacked bytes."""

import errno
import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BufferedIOBase

from tasks.escaping import shortened

MIB = 2**20
# Images hardly compress, and captions by a factor of about 10.
MAX_GROWTH = 200
# An archive may unpack to this many bytes whatever its own size.
SMALL_BYTES = 1024 * MIB
CHUNK_BYTES = 256 * 1024
# What zipfile and gzip raise for invalid bytes; RuntimeError for features they lack, OverflowError
# and OSError for offsets outside the file.
DAMAGE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


# What a worker's disk raises when it takes no more; nothing is wrong with the file that is read.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UnpackingStoppedError(Exception):
    """The archive must not be unpacked any further; the message says why."""


class DamagedMemberError(Exception):
    """One member cannot be read; the message says why."""


@dataclass(frozen=True)
class Member:
    """An entry of an archive, as its header describes it.

    Attributes:
        name: The name in the archive.
        size: The size in bytes; no more bytes are read.
        is_folder: Whether it is a folder.
        problem: Why it cannot be unpacked, whatever its name; empty if it can.
    """

    name: str
    size: int
    is_folder: bool
    problem: str


class UnpackedBytes:
    """Counts unpacked bytes up to a maximum.

    Args:
        archive_bytes: The archive's size.
        max_bytes: The maximum that the caller allows.
    """

    def __init__(self, archive_bytes: int, max_bytes: int) -> None:
        self._left = min(max_bytes, max(SMALL_BYTES, MAX_GROWTH * archive_bytes))
        if self._left == max_bytes:
            self._problem = f"unpacks to over {max_bytes:,} bytes, the maximum"
        else:
            self._problem = (
                f"unpacks to over {MAX_GROWTH} times its size, which images do not; "
                "it looks like a decompression bomb"
            )

    def add(self, count: int) -> None:
        """Count bytes.

        Raises:
            UnpackingStoppedError: There are more than the maximum.
        """
        self._left -= count
        if self._left < 0:
            raise UnpackingStoppedError(self._problem)


def read_up_to(source: BufferedIOBase, count: int) -> bytes:
    """Read a number of bytes, fewer only at the end.

    Raises:
        UnpackingStoppedError: The bytes are damaged.
    """
    try:
        return source.read(count)
    except DAMAGE_ERRORS as error:
        raise UnpackingStoppedError(damage_message(error)) from error


def damage_message(error: Exception) -> str:
    """Return the message for a damaged archive."""
    reason = shortened(str(error)) or "it ends too soon"  # zipfile quotes names in its messages
    return f"is damaged or truncated ({reason}); pack it again"
