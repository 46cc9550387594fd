"""A web server of a test's own, which is an S3 too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

DATA = bytes(range(256)) * 4096 * 3  # 3 MiB


@dataclass
class Served:
    """A file of the test's server, and how it is served."""

    data: bytes = DATA
    etag: str | None = '"1"'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    says_length: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which each answer breaks off
    content_range: str | None = None  # instead of the true one


@dataclass
class Asked:
    """A request that the server got, and the bytes that it sent for it."""

    path: str
    headers: dict[str, str]
    sent: int = 0


class Site(ThreadingHTTPServer):
    """Serves files with ETags, ranges and conditions, and lists them as S3 does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self.host = f"127.0.0.1:{self.server_port}"

    def url(self, path: str = "/a.zip") -> str:
        return f"http://{self.host}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is to be said."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.server.asked.append(asked)
        if "list-type=2" in query:
            self._list(path, parse_qs(query)["prefix"][0] if "prefix=" in query else "")
        elif (served := self.server.files.get(path)) is None:
            self.send_response(404)
            self.end_headers()
        else:
            asked.sent = self._serve(served, asked.headers)

    do_HEAD = do_GET  # noqa: N815

    def _serve(self, served: Served, asked: dict[str, str]) -> int:
        status, start, size = served.status, 0, len(served.data)
        end = size
        if served.etag is not None and asked.get("if-none-match") == served.etag:
            status = 304
        elif "range" in asked and asked.get("if-range", served.etag) == served.etag:
            first, _, last = asked["range"].removeprefix("bytes=").partition("-")
            status, start, end = 206, int(first), min(size, int(last or size) + 1)
        self.send_response(status)
        for name, value in served.headers.items():
            self.send_header(name, value)
        if served.etag is not None:
            self.send_header("ETag", served.etag)
        if status == 206:
            true = f"bytes {start}-{end - 1}/{size}"
            self.send_header("Content-Range", served.content_range or true)
        if served.says_length and status != 304:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD" or status == 304:
            return 0
        end = start + served.cuts.pop(0) if served.cuts else end
        self.wfile.write(served.data[start:end])
        return end - start

    def _list(self, bucket: str, prefix: str) -> None:
        keys = sorted(path.removeprefix(f"{bucket}/") for path in self.server.files)
        found = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><ETag>x</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()
