"""What downloads over HTTPS and from object stores share: file metadata, responses and errors."""

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.errors import Problem


class DownloadError(Exception):
    """A download failed. The message names the URL without its secret parts.

    Args:
        message: What went wrong.
        retryable: Whether the same download may succeed later.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable

    def problem(self, location: str) -> Problem:
        """Return the error as a problem of a report."""
        return Problem(location, str(self), retryable=self.retryable)


class InterruptedDownloadError(Exception):
    """The download was interrupted and may resume."""


class StalePartError(InterruptedDownloadError):
    """The stored part and the server's response are of different versions of the file."""


@dataclass(frozen=True)
class FileMeta:
    """Metadata of one version of a file.

    Attributes:
        etag: The ETag, as the server spells it.
        last_modified: The Last-Modified, as the server spells it.
        size: The size in bytes, if the server reports it.
        sha256: The digest in hex; None until the whole file is stored.
    """

    etag: str | None
    last_modified: str | None
    size: int | None
    sha256: str | None = None

    @property
    def strong_etag(self) -> str | None:
        """The ETag, if it is strong: an equal one means equal bytes."""
        return None if self.etag is None or self.etag.startswith("W/") else self.etag


@dataclass(frozen=True)
class DownloadResponse:
    """A server's response: the bytes of a file from an offset on, in pieces."""

    meta: FileMeta
    offset: int
    pieces: Iterable[bytes]


def is_same_version(one: FileMeta, other: FileMeta) -> bool:
    """Return whether two responses are of one version of a file."""
    if one.etag is not None or other.etag is not None:
        return one.etag == other.etag
    return (one.last_modified, one.size) == (other.last_modified, other.size)
