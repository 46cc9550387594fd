"""What downloads from the web and from clouds have in common: versions of files, and errors."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tasks.errors import Fault


class DownloadError(Exception):
    """A download that failed: what was wrong with which URL, without what is secret in it.

    Args:
        message: What was wrong.
        passing: It may succeed after a while.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing

    def fault(self, where: str) -> Fault:
        """The same for a report."""
        return Fault(where, str(self), passing=self.passing)


class BrokenError(Exception):
    """The download may be gone on with."""


class OtherPartError(BrokenError):
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
class Answer:
    """What a server sends: the file's pieces from an offset on."""

    meta: FileMeta
    offset: int
    pieces: Iterable[bytes]


def shown(url: str) -> str:
    """A URL as messages show it: without query, fragment, user and password."""
    scheme = scheme_of(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # an odd password may look like a port
        return f"{scheme}://..."
    if not host:
        return f"{scheme}:..." if scheme else "..."
    host = f"[{host}]" if ":" in host else host
    text = f"{scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    return "".join(each if each.isprintable() else "?" for each in text)


def without_queries(value: Any) -> Any:
    """A JSON value with its URLs as messages show them: signatures are not for keeping."""
    if isinstance(value, dict):
        return {key: without_queries(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_queries(item) for item in value]
    return shown(value) if isinstance(value, str) and "://" in value else value


def scheme_of(url: str) -> str:
    """A URL's scheme in lower case; empty where it has none."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,15}):", url)
    return "" if match is None else match[1].lower()


def is_same(one: FileMeta, other: FileMeta) -> bool:
    """Whether two answers are about one version of a file."""
    if one.etag is not None or other.etag is not None:
        return one.etag == other.etag
    return (one.last_modified, one.size) == (other.last_modified, other.size)


def is_passing(error: Exception) -> bool:
    """Whether a request to the Hub that failed so may succeed after a while."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return isinstance(error, httpx2.TransportError)
