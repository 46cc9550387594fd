"""Downloads over HTTPS, from public addresses and from hosts that the operator allows."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import quote, urljoin, urlsplit

import httpcore2
import httpx2

from tasks.data.download.pace import WINDOW_S, headers_deadline
from tasks.data.download.protocol import (
    DownloadError,
    DownloadResponse,
    FileMeta,
    InterruptedDownloadError,
    StalePartError,
)
from tasks.data.download.ssrf import AddressError, SsrfGuard, is_allowed
from tasks.urls import redacted, scheme_of

MAX_REDIRECTS = 5
# A server may need a while for the first byte of a large file, but not to accept a connection.
_TIMEOUT = httpx2.Timeout(connect=15.0, read=WINDOW_S, write=WINDOW_S, pool=None)
_BUSY = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class HttpsClient:
    """Requests files from web servers.

    It uses no proxy, which would resolve a host where its addresses cannot be checked, and follows
    redirects itself, so that every hop is checked as the first URL is.

    Args:
        hosts: Hosts that may have addresses that are not public, and may be used without TLS.
    """

    def __init__(self, hosts: frozenset[str]) -> None:
        self._hosts = hosts
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = httpx2.Client(
            transport=_GuardedTransport(hosts),
            cookies=no_cookies,
            follow_redirects=False,
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def check(self, url: str) -> None:
        """Refuse a URL that is malformed or must not be requested.

        Raises:
            DownloadError: The URL is refused.
        """
        _checked_url(url, self._hosts)

    @contextmanager
    def request_file(
        self, url: str, stored: FileMeta | None, offset: int
    ) -> Iterator[DownloadResponse | None]:
        """Request a file, or what is missing of it.

        Args:
            url: The file's URL.
            stored: The metadata of the version that is stored, whole or in part.
            offset: The number of its bytes that are stored, if it is a part.

        Yields:
            The response; None if the stored file is unchanged.

        Raises:
            DownloadError: The file cannot be downloaded.
            InterruptedDownloadError: The download may resume later.
        """
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "training-worker"}
        etag = stored.strong_etag if stored is not None else None
        if stored is not None and stored.sha256 is not None:
            if stored.etag is not None:
                headers["If-None-Match"] = stored.etag
            elif stored.last_modified is not None:
                headers["If-Modified-Since"] = stored.last_modified
        elif offset and etag is not None:
            headers |= {"Range": f"bytes={offset}-", "If-Range": etag}
        with self._follow(url, headers) as response:
            yield _read_response(url, response, stored, offset)

    @contextmanager
    def _follow(self, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """Send a GET request and yield the response that is no redirect."""
        # As bytes: a server's ETag, which is sent back, may be any Latin-1 text.
        lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            checked = _checked_url(target, self._hosts)
            request = self._client.build_request("GET", checked, headers=lines)
            with _typed_errors(target), closing(self._send(request)) as response:
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                target = _redirect_target(target, response)
        raise DownloadError(f"{redacted(url)} redirects more than {MAX_REDIRECTS} times")

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        with headers_deadline():
            return self._client.send(request, stream=True)


class _GuardedTransport(httpx2.HTTPTransport):
    """A transport that connects through the SSRF guard.

    httpx2 has no option for a pool's network backend, so the pool is made here, and the base's
    constructor, which would make one without the guard, is not called. If a later httpx2 keeps its
    pool elsewhere, every request fails; none goes out unguarded.
    """

    def __init__(self, hosts: frozenset[str]) -> None:
        self._pool = httpcore2.ConnectionPool(
            network_backend=SsrfGuard(hosts), keepalive_expiry=30.0
        )


def _checked_url(url: str, hosts: frozenset[str]) -> httpx2.URL:
    """Return a URL in the form in which it is requested.

    Raises:
        DownloadError: The URL is malformed or must not be requested.
    """
    scheme = scheme_of(url)
    if scheme not in ("http", "https"):
        raise DownloadError(
            f"{redacted(url)} cannot be downloaded; use https://, s3://, gs:// or az://"
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise DownloadError(f"{redacted(url)} is not a URL") from error
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or port == 0:
        raise DownloadError(f"{redacted(url)} has no valid host")
    if "@" in parts.netloc:
        raise DownloadError(f"{redacted(url)} has a user or a password in it, which is not used")
    if scheme == "http" and not is_allowed(host, port or 80, hosts):
        raise DownloadError(
            f"{redacted(url)} is not encrypted; use https://, "
            "or the operator may allow the host in TRAINING_DATA_HOSTS"
        )
    path = _quoted(parts.path or "/") + (f"?{_quoted(parts.query)}" if parts.query else "")
    try:
        return httpx2.URL(scheme=scheme, host=host, port=port, raw_path=path.encode("ascii"))
    except (ValueError, httpx2.InvalidURL) as error:
        raise DownloadError(f"{redacted(url)} is not a URL") from error


def _quoted(text: str) -> str:
    # Leaves what is quoted already. Bytes of a Location that are not UTF-8 are quoted, too.
    return quote(text, safe="/%:@!$&'()*+,;=~?", errors="surrogateescape")


def _redirect_target(url: str, response: httpx2.Response) -> str:
    for name, value in response.headers.raw:
        if name.lower() == b"location":
            try:
                return urljoin(url, value.decode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise DownloadError(f"{redacted(url)} redirects to an invalid URL") from error
    raise DownloadError(f"{redacted(url)} redirects without a target")


@contextmanager
def _typed_errors(url: str) -> Iterator[None]:
    """Turn httpx2's errors into those of a download."""
    try:
        yield
    except AddressError as error:
        raise DownloadError(f"{redacted(url)} must not be requested: {error}") from error
    except httpx2.TimeoutException as error:
        raise InterruptedDownloadError("the server does not respond") from error
    except httpx2.NetworkError as error:
        raise InterruptedDownloadError(str(error)) from error
    except httpx2.RemoteProtocolError as error:
        # httpx2 reads a redirect's target even if it does not follow it.
        if isinstance(error.__cause__, httpx2.InvalidURL):
            raise DownloadError(f"{redacted(url)} redirects to an invalid URL") from error
        # Without the error's text, which may quote what the server sent.
        raise InterruptedDownloadError("the response is incomplete") from error
    except httpx2.ProtocolError as error:
        raise DownloadError(f"{redacted(url)} cannot be requested") from error


def _read_response(
    url: str, response: httpx2.Response, stored: FileMeta | None, offset: int
) -> DownloadResponse | None:
    """Return what a server sends; None if the stored file is unchanged.

    Raises:
        DownloadError: The server does not send the file.
        InterruptedDownloadError: It may send the file later.
    """
    fields = {name.lower().decode(): text.decode("latin-1") for name, text in response.headers.raw}
    status = response.status_code
    if status == 304:
        return None
    if status == 416 and offset:
        raise StalePartError("the server does not have the requested range")
    if status in _BUSY:
        raise InterruptedDownloadError(f"the server responded with {status}")
    if status not in (200, 206):
        raise DownloadError(
            f"{redacted(url)} cannot be downloaded: the server responded with {status}"
        )
    if (encoding := fields.get("content-encoding", "identity").lower()) != "identity":
        raise DownloadError(
            f"{redacted(url)} has the content encoding {encoding[:40]!r}, which was not requested"
        )
    meta = FileMeta(fields.get("etag"), fields.get("last-modified"), _length(fields))
    if status == 206:
        meta = replace(meta, size=_total_size(fields.get("content-range", ""), offset))
        if stored is None or meta.etag != stored.etag:
            raise StalePartError("the server sent a range of another version")
        return DownloadResponse(meta, offset, response.iter_raw())
    if stored is not None and stored.sha256 is not None and meta.etag and meta.etag == stored.etag:
        return None
    return DownloadResponse(meta, 0, response.iter_raw())


def _length(fields: dict[str, str]) -> int | None:
    length = fields.get("content-length", "")
    return int(length) if length.isdecimal() and "transfer-encoding" not in fields else None


def _total_size(content_range: str, offset: int) -> int:
    """Return the whole file's size, by the Content-Range of all bytes from an offset on."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range.strip())
    if match is not None:
        start, last, size = (int(number) for number in match.groups())
        if 0 < start == offset and last + 1 == size:
            return size
    raise StalePartError("the server sent another range than requested")
