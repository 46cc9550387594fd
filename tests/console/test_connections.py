import asyncio
import socket

import httpx2
import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from console.connections import HeadersInTime
from tests.console.conftest import Console

PARTIAL = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
WHOLE = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", PARTIAL, WHOLE + PARTIAL])
def test_a_connection_without_whole_headers_is_closed(
    console: Console, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(HeadersInTime, "timeout_s", 0.2)
    with socket.create_connection(("127.0.0.1", int(console.url.rpartition(":")[2]))) as raw:
        raw.settimeout(20)
        raw.sendall(sent)
        received = bytearray()
        while chunk := raw.recv(2**16):
            received += chunk
        assert received.count(b"HTTP/1.1 200 OK") == sent.count(WHOLE)


def test_a_slow_answer_is_not_cut_off(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeadersInTime, "timeout_s", 0.05)
    ping = console.services.fleet.ping

    async def slow_ping() -> None:
        await asyncio.sleep(0.3)
        await ping()

    monkeypatch.setattr(console.services.fleet, "ping", slow_ping)
    assert httpx2.get(f"{console.url}/v1/health").status_code == 200


def test_a_socket_outlives_the_time_for_headers(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeadersInTime, "timeout_s", 0.05)
    url = f"{console.url.replace('http', 'ws', 1)}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    with connect(url, origin=Origin(console.url), proxy=None) as page:
        assert str(page.recv(10)).startswith("0{")
        with pytest.raises(TimeoutError):
            page.recv(0.3)
        page.send("40")
        assert str(page.recv(10)).startswith("40{")
