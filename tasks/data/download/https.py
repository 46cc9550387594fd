"""Files of the web, by HTTPS, from public addresses only."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from tasks.data.download.protocol import (
    DownloadError,
    DownloadResponse,
    FileMeta,
    InterruptedDownloadError,
    OtherPartError,
)
from tasks.data.download.ssrf import AddressError, SsrfGuard, is_allowed
from tasks.urls import scheme_of, shown

MOST_REDIRECTS = 5
_TIMEOUTS = {"connect": 15.0, "read": 60.0, "write": 60.0}
_BUSY = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Web:
    """Asks web servers for files.

    Straight, without proxies: a proxy would resolve the host where its addresses cannot be checked.

    Args:
        hosts: Hosts that may be asked although their addresses are not public, or without TLS.
    """

    def __init__(self, hosts: frozenset[str]) -> None:
        self._hosts = hosts
        self._pool = httpcore2.ConnectionPool(
            network_backend=SsrfGuard(hosts), keepalive_expiry=30.0
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def check(self, url: str) -> None:
        """Refuse what is no address of a file, or may not be asked for.

        Raises:
            DownloadError: It is so.
        """
        _web_url(url, self._hosts)

    @contextmanager
    def ask(
        self, url: str, kept: FileMeta | None, offset: int
    ) -> Iterator[DownloadResponse | None]:
        """The file from an offset on where its version is the kept one; None: it is unchanged."""
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
            asked = _web_url(target, self._hosts)
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


def _web_url(url: str, hosts: frozenset[str]) -> httpcore2.URL:
    """A URL as it is asked for, if it may be.

    Raises:
        DownloadError: It may not.
    """
    scheme = scheme_of(url)
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
        raise InterruptedDownloadError("the server does not answer") from error
    except httpcore2.NetworkError as error:
        raise InterruptedDownloadError(str(error)) from error
    except httpcore2.RemoteProtocolError as error:
        # Not its text: it may quote what the server sent.
        raise InterruptedDownloadError("the answer is incomplete") from error
    except httpcore2.ProtocolError as error:
        raise DownloadError(f"{shown(url)} cannot be asked for") from error


def _read_answer(
    url: str, response: httpcore2.Response, kept: FileMeta | None, offset: int
) -> DownloadResponse | None:
    """What a server answered; None: the kept file is still the same.

    Raises:
        DownloadError: There is no file to be had.
        InterruptedDownloadError: There may be, next time.
    """
    fields = {name.lower().decode(): value.decode("latin-1") for name, value in response.headers}
    status = response.status
    if status == 304:
        return None
    if status == 416 and offset:
        raise OtherPartError("the server has no such part")
    if status in _BUSY:
        raise InterruptedDownloadError(f"the server answered {status}")
    if status not in (200, 206):
        raise DownloadError(f"{shown(url)} cannot be downloaded: the server answered {status}")
    if (encoding := fields.get("content-encoding", "identity").lower()) != "identity":
        raise DownloadError(
            f"{shown(url)} comes packed as {encoding[:40]!r}, which was not asked for"
        )
    meta = FileMeta(fields.get("etag"), fields.get("last-modified"), _length(fields))
    if status == 206:
        meta = replace(meta, size=_ranges_size(fields.get("content-range", ""), offset))
        if kept is None or meta.etag != kept.etag:
            raise OtherPartError("a part of another version came")
        return DownloadResponse(meta, offset, response.iter_stream())
    if kept is not None and kept.sha256 is not None and meta.etag and meta.etag == kept.etag:
        return None
    return DownloadResponse(meta, 0, response.iter_stream())


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
    raise OtherPartError("another part came than was asked for")
