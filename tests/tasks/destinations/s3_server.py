"""A server that speaks what obstore asks an S3 bucket for when it writes."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_LIST = (
    b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
)


@dataclass
class S3Server:
    """Buckets: the objects by path, each with its digest as metadata."""

    host: str = ""
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    """The access keys that requests were signed with."""
    status: int = 0
    """The status of all answers; 0 answers as a bucket does."""
    page: bytes = b""
    """What comes with this status."""
    is_endless: bool = False
    """Whether objects that are read have no end."""

    def answer(
        self, method: str, path: str, headers: Message, data: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        credential = headers.get("Authorization", "").partition("Credential=")[2]
        self.keys.add(credential.partition("/")[0])
        if self.status:
            return self.status, {}, self.page
        if method == "PUT":
            if headers.get("If-None-Match") == "*" and path in self.objects:
                return 412, {}, b""
            self.objects[path] = (data, headers.get("x-amz-meta-sha256", ""))
            self.written.append(path)
            return 200, {"ETag": _etag(data)}, b""
        if path not in self.objects:
            return 404, {}, b""
        data, digest = self.objects[path]
        modified = {"Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
        return 200, {"ETag": _etag(data), "x-amz-meta-sha256": digest, **modified}, data


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    s3 = S3Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            status, headers, body = s3.answer(self.command, path, self.headers, data)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            is_endless = s3.is_endless and self.command == "GET"
            self.send_header("Content-Length", str(2**50 if is_endless else len(body)))
            self.end_headers()
            self.close_connection = is_endless
            with contextlib.suppress(OSError):
                while is_endless:
                    self.wfile.write(bytes(2**16))
            if self.command != "HEAD" and not is_endless:
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = _reply  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    s3.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
