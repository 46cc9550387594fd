"""What downloads from the web and from clouds have in common: versions of files, and errors."""

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.errors import Problem


class DownloadError(Exception):
    """A download that failed: what was wrong with which URL, without what is secret in it.

    Args:
        message: What was wrong.
        passing: It may succeed after a while.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable

    def problem(self, where: str) -> Problem:
        """The same for a report."""
        return Problem(where, str(self), retryable=self.retryable)


class InterruptedDownloadError(Exception):
    """The download may be gone on with."""


class OtherPartError(InterruptedDownloadError):
    """What came so far and what comes now are not of one file."""


@dataclass(frozen=True)
class FileMeta:
    """What is known of a file.

    Attributes:
        etag: Its ETag, as the server spells it.
        last_modified: Its Last-Modified, as the server spells it.
        size: Its bytes, where the server said so.
        sha256: Its digest, once it is here as a whole.
    """

    etag: str | None
    last_modified: str | None
    size: int | None
    sha256: str | None = None

    @property
    def strong_etag(self) -> str | None:
        """The ETag, if the same one means the same bytes."""
        return None if self.etag is None or self.etag.startswith("W/") else self.etag


@dataclass(frozen=True)
class DownloadResponse:
    """What a server sends: the file's pieces from an offset on."""

    meta: FileMeta
    offset: int
    pieces: Iterable[bytes]


def is_same(one: FileMeta, other: FileMeta) -> bool:
    """Whether two answers are about one version of a file."""
    if one.etag is not None or other.etag is not None:
        return one.etag == other.etag
    return (one.last_modified, one.size) == (other.last_modified, other.size)
