"""Objects of S3, GCS and Azure, with the worker's credentials."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from tasks.data.download.protocol import (
    DownloadError,
    DownloadResponse,
    FileMeta,
    InterruptedDownloadError,
    OtherPartError,
    is_same,
)
from tasks.data.read_policy import CLOUD_SCHEMES
from tasks.dataset import MOST_ITEMS
from tasks.urls import shown

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

# An image, its caption and its mask, for each item.
MOST_NAMES = 3 * MOST_ITEMS
_PIECE = 2**20
_CLOUD_REQUEST = 8 * 2**20


def check_cloud_url(url: str) -> None:
    """Refuse what names no object or prefix.

    Raises:
        DownloadError: It does not.
    """
    _cloud_parts(url)


def list_names(url: str) -> list[str]:
    """The names of the objects below a prefix, relative to it, sorted.

    Raises:
        DownloadError: They cannot be listed.
    """
    bucket, prefix = _cloud_parts(url)
    names: list[str] = []
    try:
        with _cloud_errors(url):
            for batch in obstore.list(_open_bucket(bucket), prefix or None):
                names += [meta["path"][len(prefix) :].lstrip("/") for meta in batch]
                if len(names) > MOST_NAMES:
                    raise DownloadError(f"{shown(url)} holds over {MOST_NAMES:,} objects")
    except InterruptedDownloadError as error:
        raise DownloadError(f"{shown(url)} cannot be listed: {error}") from error
    return sorted(names)


@contextmanager
def ask_cloud(url: str, kept: FileMeta | None, offset: int) -> Iterator[DownloadResponse | None]:
    """The object from an offset on where its version is the kept one; None: it is unchanged."""
    bucket, key = _cloud_parts(url)
    with _cloud_errors(url):
        store = _open_bucket(bucket)
        meta = _cloud_meta(obstore.head(store, key))
        unchanged = kept is not None and is_same(kept, meta)
        if unchanged and kept is not None and kept.sha256 is not None:
            yield None
            return
        start = offset if unchanged and offset < (meta.size or 0) else 0
        yield DownloadResponse(meta, start, _cloud_pieces(store, key, meta, start))


def _cloud_parts(url: str) -> tuple[str, str]:
    """A cloud URL's bucket, as a URL, and the object's name in it, both as they are spelled.

    Raises:
        DownloadError: It is no such URL.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    # Never shown in messages: what would be taken for a query may be a signature.
    if "?" in url:
        raise DownloadError(f"{shown(url)} has a '?', which a name in a cloud may not have here")
    if scheme not in CLOUD_SCHEMES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise DownloadError(f"{shown(url)} names no bucket; it has the form s3://bucket/name")
    if not key.isprintable() or (key and not {"", ".", ".."}.isdisjoint(key.split("/"))):
        raise DownloadError(f"{shown(url)} has an empty name, '.' or '..' between its slashes")
    return f"{scheme}://{bucket}", key


def _open_bucket(url: str) -> "ObjectStore":
    try:
        # No client options: with any of them obstore ignores those of the environment, such as
        # AWS_ALLOW_HTTP and AWS_PROXY_URL.
        return from_url(url, retry_config={"max_retries": 2})
    except (BaseError, ValueError) as error:
        raise DownloadError(f"{url} cannot be opened: {_first_line(error)}") from error


def _cloud_meta(found: "ObjectMeta") -> FileMeta:
    return FileMeta(found["e_tag"], found["last_modified"].isoformat(), found["size"])


def _cloud_pieces(store: "ObjectStore", key: str, meta: FileMeta, start: int) -> Iterator[bytes]:
    """An object's bytes from an offset on.

    By several requests: obstore's timeout, of 30 s unless the environment sets one, is for the
    whole of each.
    """
    size = meta.size or 0
    for first in range(start, size, _CLOUD_REQUEST):
        end = min(first + _CLOUD_REQUEST, size)
        options: GetOptions = {"range": (first, end)}
        if meta.strong_etag is not None:
            options["if_match"] = meta.strong_etag
        result = obstore.get(store, key, options=options)
        if result.range != (first, end) or not is_same(meta, _cloud_meta(result.meta)):
            raise OtherPartError("it changed meanwhile")
        for piece in result.stream(min_chunk_size=_PIECE):
            yield bytes(piece)


@contextmanager
def _cloud_errors(url: str) -> Iterator[None]:
    """What obstore raises, as what it means here."""
    try:
        yield
    except FileNotFoundError as error:
        if error.errno is not None:  # this machine's disk
            raise
        raise DownloadError(f"there is no {shown(url)}") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise DownloadError(f"this worker's credentials may not read {shown(url)}") from error
    except PreconditionError as error:
        raise OtherPartError("it changed meanwhile") from error
    except GenericError as error:
        raise InterruptedDownloadError(_first_line(error)) from error
    except BaseError as error:
        raise DownloadError(f"{shown(url)} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What of obstore's errors is for people: no dumps, and no queries, which may be signed."""
    return re.sub(r"\?[^\s\"')]+", "", str(error).partition("\n")[0])
