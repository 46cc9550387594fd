"""Downloads of objects from S3, GCS and Azure, with the worker's credentials."""

import re
from collections.abc import Generator, Iterator
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
    StalePartError,
    is_same_version,
)
from tasks.data.read_policy import OBJECT_SCHEMES
from tasks.dataset import MAX_ITEMS
from tasks.urls import redacted

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

# An image, its caption and its mask, for each item.
MAX_NAMES = 3 * MAX_ITEMS
_PIECE_BYTES = 2**20
_CHANGED = "the object changed during the download"
# Small enough to arrive within obstore's timeout of 30 s on a slow line.
_REQUEST_BYTES = 8 * 2**20


def check_object_url(url: str) -> None:
    """Refuse a URL that names no object or prefix.

    Raises:
        DownloadError: The URL is malformed.
    """
    _split_url(url)


def list_objects(url: str) -> Generator[list[str], None, None]:
    """Yield the names of the objects below a prefix, relative to it, in batches.

    Raises:
        DownloadError: The objects cannot be listed, or are too many.
    """
    bucket, prefix = _split_url(url)
    count = 0
    try:
        with _typed_errors(url):
            for batch in obstore.list(_open_bucket(bucket), prefix or None):
                count += len(batch)
                if count > MAX_NAMES:
                    raise DownloadError(f"{redacted(url)} has over {MAX_NAMES:,} objects")
                yield [meta["path"][len(prefix) :].lstrip("/") for meta in batch]
    except InterruptedDownloadError as error:
        raise DownloadError(f"{redacted(url)} cannot be listed: {error}") from error


@contextmanager
def request_object(
    url: str, stored: FileMeta | None, offset: int
) -> Iterator[DownloadResponse | None]:
    """Request an object, or what is missing of it; see ``HttpsClient.request_file``."""
    bucket, key = _split_url(url)
    with _typed_errors(url):
        store = _open_bucket(bucket)
        meta = _meta_of(obstore.head(store, key))
        unchanged = stored is not None and is_same_version(stored, meta)
        if unchanged and stored is not None and stored.sha256 is not None:
            yield None
            return
        start = offset if unchanged and offset < (meta.size or 0) else 0
        yield DownloadResponse(meta, start, _pieces(store, key, meta, start))


def _split_url(url: str) -> tuple[str, str]:
    """Return the URL of an object's bucket, and the object's name, both as they are spelled.

    Raises:
        DownloadError: The URL is malformed.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    # An object's name may have a '?', but in a URL it more likely begins a signature.
    if "?" in url:
        raise DownloadError(f"{redacted(url)} has a '?', which an object's name must not have here")
    if scheme not in OBJECT_SCHEMES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise DownloadError(f"{redacted(url)} has no bucket; the form is s3://bucket/name")
    if not key.isprintable() or (key and not {"", ".", ".."}.isdisjoint(key.split("/"))):
        raise DownloadError(f"{redacted(url)} has an empty name, '.' or '..' between its slashes")
    return f"{scheme}://{bucket}", key


def _open_bucket(url: str) -> "ObjectStore":
    try:
        # Without client options: given any, obstore ignores those of the environment, such as
        # AWS_ALLOW_HTTP and AWS_PROXY_URL.
        return from_url(url, retry_config={"max_retries": 2})
    except (BaseError, ValueError) as error:
        raise DownloadError(f"{url} cannot be opened: {_first_line(error)}") from error


def _meta_of(meta: "ObjectMeta") -> FileMeta:
    return FileMeta(meta["e_tag"], meta["last_modified"].isoformat(), meta["size"])


def _pieces(store: "ObjectStore", key: str, meta: FileMeta, start: int) -> Iterator[bytes]:
    """Yield an object's bytes from an offset on.

    It sends several requests, because obstore's timeout (30 s, unless the environment sets one)
    applies to each request as a whole.
    """
    size = meta.size or 0
    for first in range(start, size, _REQUEST_BYTES):
        end = min(first + _REQUEST_BYTES, size)
        options: GetOptions = {"range": (first, end)}
        if meta.strong_etag is not None:
            options["if_match"] = meta.strong_etag
        result = obstore.get(store, key, options=options)
        if result.range != (first, end) or not is_same_version(meta, _meta_of(result.meta)):
            raise StalePartError(_CHANGED)
        for piece in result.stream(min_chunk_size=_PIECE_BYTES):
            yield bytes(piece)


@contextmanager
def _typed_errors(url: str) -> Iterator[None]:
    """Turn obstore's errors into those of a download."""
    try:
        yield
    except FileNotFoundError as error:
        if error.errno is not None:  # of this machine's disk
            raise
        raise DownloadError(f"there is no {redacted(url)}") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise DownloadError(f"this worker's credentials may not read {redacted(url)}") from error
    except PreconditionError as error:
        raise StalePartError(_CHANGED) from error
    except GenericError as error:
        raise InterruptedDownloadError(_first_line(error)) from error
    except BaseError as error:
        raise DownloadError(f"{redacted(url)} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return an obstore error's first line, without queries, which may hold signatures."""
    return re.sub(r"\?[^\s\"')]+", "", str(error).partition("\n")[0])
