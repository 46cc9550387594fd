"""Downloads of data sets, by HTTPS and from S3, GCS and Azure, kept on this machine.

A file is asked for again each time, but comes again only when it changed; one that was cut off is
gone on with.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

import httpcore2
import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from tasks.data.access import CLOUD_SCHEMES, Access
from tasks.data.addresses import AddressError, PublicNetwork, is_allowed
from tasks.data.dataset import MOST_ITEMS

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

OnProgress = Callable[[int, int | None], None]

MOST_REDIRECTS = 5
# A picture, its caption and its mask, for each item.
MOST_NAMES = 3 * MOST_ITEMS
# Seconds before each time that a broken download is gone on with.
PAUSES = (0.5, 1.0, 2.0)
_PIECE = 2**20
_CLOUD_REQUEST = 8 * 2**20
_TIMEOUTS = {"connect": 15.0, "read": 60.0, "write": 60.0}
_BUSY = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class DownloadError(Exception):
    """A download that failed: what was wrong with which URL, without what is secret in it."""


class _BrokenError(Exception):
    """The download may be gone on with."""


class _OtherPartError(_BrokenError):
    """What came so far and what comes now are not of one file."""


@dataclass(frozen=True)
class _Meta:
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
class _Answer:
    """What a server sends: the file's pieces from an offset on."""

    meta: _Meta
    offset: int
    pieces: Iterable[bytes]


class Downloads:
    """The downloads that this machine keeps.

    HTTPS goes straight to the host: proxies, and the environment variables that name them, are
    not used, since a proxy would resolve the host where its addresses cannot be checked. Clouds
    are read with the worker's credentials, below the operator's roots only.

    Several threads and processes may use one folder; one that wants a file that another is
    downloading waits for it. Files that are in use stay readable while they are open, but may be
    removed from the folder by a later ``fetch`` of another file, those not used longest first.

    Args:
        folder: Where they are kept.
        access: The operator's rules.
    """

    def __init__(self, folder: Path, access: Access) -> None:
        self._folder = folder
        self._access = access
        self._pool = httpcore2.ConnectionPool(
            network_backend=PublicNetwork(access.hosts), keepalive_expiry=30.0
        )
        weakref.finalize(self, self._pool.close)
        # How many bytes may come before the folder is looked through again.
        self._bytes_to_look = 0

    def fetch(
        self,
        url: str,
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """The file of a URL, downloaded unless the one that is kept is still the same.

        Args:
            url: ``https://``, ``s3://``, ``gs://`` or ``az://``; ``http://`` for allowed hosts.
                An object's name is taken as it is: ``%20`` in it is no space.
            sha256: The digest that it must have; a kept file that has it is not asked for again.
            on_progress: Told the bytes that are here and, where known, those that it has.

        Raises:
            DownloadError: It cannot be had.
            DeniedError: It is in a cloud, outside the operator's roots.
        """
        self._check(url)
        told = on_progress or (lambda so_far, total: None)
        wanted = None if sha256 is None else sha256.lower()
        try:
            with self._entry(url) as entry:
                kept = entry.load()
                if wanted is None or kept is None or kept.sha256 != wanted:
                    kept = self._renew(url, entry, told)
                    if wanted not in (None, kept.sha256):
                        entry.clear()
                        raise DownloadError(
                            f"{shown(url)} has the SHA-256 {kept.sha256}, not {wanted}"
                        )
                size = entry.data.stat().st_size
                told(size, size)
                entry.mark_used()
                self._make_room(entry, size)
                return entry.data
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise DownloadError(
                f"{shown(url)} cannot be kept in {self._folder}: {problem}"
            ) from error

    def list_cloud(self, url: str) -> list[str]:
        """The names of the objects below a prefix, relative to it, sorted.

        Args:
            url: ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

        Raises:
            DownloadError: They cannot be listed.
            DeniedError: The prefix is outside the operator's roots.
        """
        if _scheme(url) not in CLOUD_SCHEMES:
            raise DownloadError(f"{shown(url)} cannot be listed; s3://, gs:// and az:// can")
        url = url.rstrip("/")
        self._check(url)
        bucket, prefix = _cloud_parts(url)
        names: list[str] = []
        try:
            with _cloud_errors(url):
                for batch in obstore.list(_open_bucket(bucket), prefix or None):
                    names += [meta["path"][len(prefix) :].lstrip("/") for meta in batch]
                    if len(names) > MOST_NAMES:
                        raise DownloadError(f"{shown(url)} holds over {MOST_NAMES:,} objects")
        except _BrokenError as error:
            raise DownloadError(f"{shown(url)} cannot be listed: {error}") from error
        return sorted(names)

    def _check(self, url: str) -> None:
        if _scheme(url) in CLOUD_SCHEMES:
            # Before the operator's rules, whose message shows the whole URL.
            _cloud_parts(url)
            self._access.check_cloud(url)
        else:
            _web_url(url, self._access.hosts)

    @contextmanager
    def _entry(self, url: str) -> Iterator["_Entry"]:
        """The place of a URL's file, held against other processes and threads."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        with _lock_path(folder).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder.mkdir(exist_ok=True)
            yield _Entry(folder)

    def _renew(self, url: str, entry: "_Entry", told: OnProgress) -> _Meta:
        """Make the entry what the URL has now."""
        for pause in (*PAUSES, None):
            try:
                return self._try_to_renew(url, entry, told)
            except _BrokenError as error:
                if isinstance(error, _OtherPartError):
                    entry.clear()
                if pause is None:
                    raise DownloadError(
                        f"{shown(url)} broke off {len(PAUSES) + 1} times: {error}"
                    ) from error
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _try_to_renew(self, url: str, entry: "_Entry", told: OnProgress) -> _Meta:
        kept = entry.load()
        ask = self._ask_cloud if _scheme(url) in CLOUD_SCHEMES else self._ask_web
        with ask(url, kept, entry.part_size(kept)) as answer:
            if answer is None:
                if kept is None or kept.sha256 is None:
                    raise DownloadError(f"{shown(url)} is said to be unchanged, but never came")
                return kept
            self._check_size(url, answer.meta.size or 0, entry)
            return self._write(url, answer, entry, told)

    def _write(self, url: str, answer: _Answer, entry: "_Entry", told: OnProgress) -> _Meta:
        size = answer.meta.size
        if answer.offset == 0:
            entry.begin(answer.meta)
        so_far = last_told = answer.offset
        told(so_far, size)
        with entry.part.open("ab", buffering=_PIECE) as file:
            for piece in answer.pieces:
                so_far += len(piece)
                self._check_size(url, so_far, entry)
                file.write(piece)
                if so_far - last_told >= _PIECE:
                    told(so_far, size)
                    last_told = so_far
        if size is not None and so_far < size:
            raise _BrokenError(f"{so_far:,} of {size:,} bytes came")
        if size is not None and so_far > size:
            raise _OtherPartError(f"{so_far:,} bytes came, not {size:,}")
        return entry.finish(replace(answer.meta, size=so_far))

    def _check_size(self, url: str, size: int, entry: "_Entry") -> None:
        if size > self._access.most_bytes:
            entry.clear()
            most = self._access.most_bytes
            raise DownloadError(f"{shown(url)} is larger than {most:,} bytes, the most")

    @contextmanager
    def _ask_web(self, url: str, kept: _Meta | None, offset: int) -> Iterator[_Answer | None]:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "training-worker"}
        etag = kept.strong_etag if kept is not None else None
        if kept is not None and kept.sha256 is not None:
            if kept.etag is not None:
                headers["If-None-Match"] = kept.etag
            elif kept.last_modified is not None:
                headers["If-Modified-Since"] = kept.last_modified
        elif offset and etag is not None:
            headers |= {"Range": f"bytes={offset}-", "If-Range": etag}
        with self._follow(url, headers) as response:
            yield _read_answer(url, response, kept, offset)

    @contextmanager
    def _follow(self, url: str, headers: dict[str, str]) -> Iterator[httpcore2.Response]:
        """The answer to a GET, redirects followed."""
        target = url
        for _ in range(MOST_REDIRECTS + 1):
            asked = _web_url(target, self._access.hosts)
            host = asked.host if b":" not in asked.host else b"[%b]" % asked.host
            lines = [(b"Host", host if asked.port is None else b"%b:%d" % (host, asked.port))]
            lines += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            with (
                _web_errors(target),
                self._pool.stream(
                    "GET", asked, headers=lines, extensions={"timeout": _TIMEOUTS}
                ) as response,
            ):
                if response.status not in _REDIRECTS:
                    yield response
                    return
                target = _redirected(target, response)
        raise DownloadError(f"{shown(url)} redirects more than {MOST_REDIRECTS} times")

    @contextmanager
    def _ask_cloud(self, url: str, kept: _Meta | None, offset: int) -> Iterator[_Answer | None]:
        bucket, key = _cloud_parts(url)
        with _cloud_errors(url):
            store = _open_bucket(bucket)
            meta = _cloud_meta(obstore.head(store, key))
            is_same = kept is not None and _is_same(kept, meta)
            if is_same and kept is not None and kept.sha256 is not None:
                yield None
                return
            start = offset if is_same and offset < (meta.size or 0) else 0
            yield _Answer(meta, start, _cloud_pieces(store, key, meta, start))

    def _make_room(self, newest: "_Entry", size: int) -> None:
        """Remove what was not used longest, if the folder holds too much."""
        self._bytes_to_look -= size
        if self._bytes_to_look >= 0:
            return
        most = 2 * self._access.most_bytes
        entries = [_Entry(path) for path in self._folder.iterdir() if path.is_dir()]
        held = sum(entry.size() for entry in entries)
        for entry in sorted(entries, key=_Entry.used):
            if held <= most:
                break
            if entry.folder != newest.folder:
                held -= entry.remove()
        # Looking through many small files for each is slow. An eighth of the room: other
        # processes fill the folder too.
        self._bytes_to_look = max(0, most - held) // 8


@dataclass(frozen=True)
class _Entry:
    """One file's place: ``data``, or ``part`` while it comes, and what is known of it."""

    folder: Path

    @property
    def data(self) -> Path:
        """The whole file."""
        return self.folder / "data"

    @property
    def part(self) -> Path:
        """What came of it so far."""
        return self.folder / "part"

    @property
    def _meta(self) -> Path:
        return self.folder / "meta.json"

    def load(self) -> _Meta | None:
        """What is known of the file: of ``data`` if it has a digest, else of ``part``."""
        try:
            meta = _Meta(**json.loads(self._meta.read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if meta.sha256 is not None and _size(self.data) != meta.size:
            return None
        return meta

    def part_size(self, meta: _Meta | None) -> int:
        """How much came that may be gone on with."""
        if meta is None or meta.sha256 is not None or meta.strong_etag is None:
            return 0
        return _size(self.part) or 0

    def begin(self, meta: _Meta) -> None:
        """Make place for a new version."""
        self.clear()
        self._save(meta)

    def finish(self, meta: _Meta) -> _Meta:
        """Make the part the file."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.part.replace(self.data)
        meta = replace(meta, sha256=digest)
        self._save(meta)
        return meta

    def clear(self) -> None:
        """Keep nothing."""
        for path in (self._meta, self.part, self.data):
            path.unlink(missing_ok=True)

    def mark_used(self) -> None:
        """Let it be removed after those that were used before."""
        os.utime(self.folder)

    def used(self) -> float:
        """When it was used last."""
        try:
            return self.folder.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def size(self) -> int:
        """The bytes it takes."""
        return (_size(self.data) or 0) + (_size(self.part) or 0)

    def remove(self) -> int:
        """Remove it, unless someone is at it; the bytes that this freed."""
        with _lock_path(self.folder).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            size = self.size()
            shutil.rmtree(self.folder, ignore_errors=True)
            return size

    def _save(self, meta: _Meta) -> None:
        new = self._meta.with_suffix(".new")
        new.write_text(json.dumps(asdict(meta)), "utf-8")
        new.replace(self._meta)


def shown(url: str) -> str:
    """A URL as messages show it: without query, fragment, user and password."""
    scheme = _scheme(url)
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


def _scheme(url: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,15}):", url)
    return "" if match is None else match[1].lower()


def _lock_path(folder: Path) -> Path:
    # Beside the entry, and never removed: a removed lock could be held twice.
    return folder.with_suffix(".lock")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is_same(one: _Meta, other: _Meta) -> bool:
    """Whether two answers are about one version of a file."""
    if one.etag is not None or other.etag is not None:
        return one.etag == other.etag
    return (one.last_modified, one.size) == (other.last_modified, other.size)


def _web_url(url: str, hosts: frozenset[str]) -> httpcore2.URL:
    """A URL as it is asked for, if it may be.

    Raises:
        DownloadError: It may not.
    """
    scheme = _scheme(url)
    if scheme not in ("http", "https"):
        raise DownloadError(
            f"{shown(url)} cannot be downloaded; https://, s3://, gs:// and az:// can"
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        target = _quoted(parts.path or "/") + (f"?{_quoted(parts.query)}" if parts.query else "")
    except ValueError as error:
        raise DownloadError(f"{shown(url)} is no URL") from error
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or port == 0:
        raise DownloadError(f"{shown(url)} names no host")
    if "@" in parts.netloc:
        raise DownloadError(f"{shown(url)} has a user or a password in it, which is not used")
    if scheme == "http" and not is_allowed(host, port or 80, hosts):
        raise DownloadError(
            f"{shown(url)} is not encrypted; use https://, "
            "or the operator may allow the host in TRAINING_DATA_HOSTS"
        )
    return httpcore2.URL(scheme=scheme, host=host, port=port, target=target)


def _quoted(text: str) -> str:
    # What is quoted already stays as it is. Bytes of a Location that are no UTF-8, too.
    return quote(text, safe="/%:@!$&'()*+,;=~?", errors="surrogateescape")


def _redirected(url: str, response: httpcore2.Response) -> str:
    for name, value in response.headers:
        if name.lower() == b"location":
            try:
                return urljoin(url, value.decode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise DownloadError(f"{shown(url)} redirects to what is no URL") from error
    raise DownloadError(f"{shown(url)} redirects to nowhere")


@contextmanager
def _web_errors(url: str) -> Iterator[None]:
    """What httpcore2 raises, as what it means here."""
    try:
        yield
    except AddressError as error:
        raise DownloadError(f"{shown(url)} may not be asked for: {error}") from error
    except httpcore2.TimeoutException as error:
        raise _BrokenError("the server does not answer") from error
    except httpcore2.NetworkError as error:
        raise _BrokenError(str(error)) from error
    except httpcore2.RemoteProtocolError as error:
        # Not its text: it may quote what the server sent.
        raise _BrokenError("the answer is incomplete") from error
    except httpcore2.ProtocolError as error:
        raise DownloadError(f"{shown(url)} cannot be asked for") from error


def _read_answer(
    url: str, response: httpcore2.Response, kept: _Meta | None, offset: int
) -> _Answer | None:
    """What a server answered; None: the kept file is still the same.

    Raises:
        DownloadError: There is no file to be had.
        _BrokenError: There may be, next time.
    """
    fields = {name.lower().decode(): value.decode("latin-1") for name, value in response.headers}
    status = response.status
    if status == 304:
        return None
    if status == 416 and offset:
        raise _OtherPartError("the server has no such part")
    if status in _BUSY:
        raise _BrokenError(f"the server answered {status}")
    if status not in (200, 206):
        raise DownloadError(f"{shown(url)} cannot be downloaded: the server answered {status}")
    if (encoding := fields.get("content-encoding", "identity").lower()) != "identity":
        raise DownloadError(
            f"{shown(url)} comes packed as {encoding[:40]!r}, which was not asked for"
        )
    meta = _Meta(fields.get("etag"), fields.get("last-modified"), _length(fields))
    if status == 206:
        meta = replace(meta, size=_ranges_size(fields.get("content-range", ""), offset))
        if kept is None or meta.etag != kept.etag:
            raise _OtherPartError("a part of another version came")
        return _Answer(meta, offset, response.iter_stream())
    if kept is not None and kept.sha256 is not None and meta.etag and meta.etag == kept.etag:
        return None
    return _Answer(meta, 0, response.iter_stream())


def _length(fields: dict[str, str]) -> int | None:
    length = fields.get("content-length", "")
    return int(length) if length.isdecimal() and "transfer-encoding" not in fields else None


def _ranges_size(text: str, offset: int) -> int:
    """The whole file's size, by the Content-Range of all that follows an offset."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", text.strip())
    if match is not None:
        start, last, size = (int(number) for number in match.groups())
        if 0 < start == offset and last + 1 == size:
            return size
    raise _OtherPartError("another part came than was asked for")


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


def _cloud_meta(found: "ObjectMeta") -> _Meta:
    return _Meta(found["e_tag"], found["last_modified"].isoformat(), found["size"])


def _cloud_pieces(store: "ObjectStore", key: str, meta: _Meta, start: int) -> Iterator[bytes]:
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
        if result.range != (first, end) or not _is_same(meta, _cloud_meta(result.meta)):
            raise _OtherPartError("it changed meanwhile")
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
        raise _OtherPartError("it changed meanwhile") from error
    except GenericError as error:
        raise _BrokenError(_first_line(error)) from error
    except BaseError as error:
        raise DownloadError(f"{shown(url)} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What of obstore's errors is for people: no dumps, and no queries, which may be signed."""
    return re.sub(r"\?[^\s\"')]+", "", str(error).partition("\n")[0])
