"""Limits of how slowly a response may arrive before its download is interrupted."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ssl import SSLContext
from typing import Any

import httpcore2

HEADERS_S = 60.0
"""The seconds within which a response's headers arrive, for each redirect."""
WINDOW_S = 60.0
"""The seconds over which the rate is measured; also the longest wait for one byte."""
MIN_BYTES_PER_S = 10_000
"""The least rate: slower than any line that could ever transfer a dataset."""

_headers_due_s: ContextVar[float | None] = ContextVar("headers_due_s", default=None)


@contextmanager
def headers_deadline() -> Iterator[None]:
    """Bound the time of the block, which reads the headers of a response, by ``HEADERS_S``."""
    token = _headers_due_s.set(time.monotonic() + HEADERS_S)
    try:
        yield
    finally:
        _headers_due_s.reset(token)


class PacedStream(httpcore2.NetworkStream):
    """A connection whose reads fail if the server sends too slowly.

    Only the time in which a read waits counts, not the reader's own work.

    Args:
        stream: The connection.
    """

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self._waited_s = 0.0
        self._received = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read bytes.

        Raises:
            httpcore2.ReadTimeout: The server is too slow.
        """
        began_s, due_s = time.monotonic(), _headers_due_s.get()
        if due_s is not None:
            self._waited_s, self._received = 0.0, 0
            if due_s <= began_s:
                raise httpcore2.ReadTimeout("the headers of the response did not arrive in time")
            return self._stream.read(max_bytes, due_s - began_s)
        data = self._stream.read(max_bytes, min(timeout or WINDOW_S, WINDOW_S))
        self._waited_s += time.monotonic() - began_s
        self._received += len(data)
        if self._waited_s >= WINDOW_S:
            if self._received < MIN_BYTES_PER_S * self._waited_s:
                raise httpcore2.ReadTimeout("the server sends too slowly")
            self._waited_s, self._received = 0.0, 0
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write bytes."""
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """Encrypt the connection."""
        return PacedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return a fact about the connection."""
        return self._stream.get_extra_info(info)
