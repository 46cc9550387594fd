"""A proxy in front of several consoles that does what the guide's nginx configuration does.

Requests with a session go to the console that its cookie's hash names, while that one accepts
connections; others go to each console in turn.
"""

import asyncio
import re
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import count

_COOKIE = re.compile(rb"(?i)\r\ncookie:[^\r]*\btraining_session=([^;\r]+)")
_CONNECTION = re.compile(rb"(?i)\r\nconnection:[^\r]*")


class StickyProxy:
    """The proxy, in a thread.

    Args:
        ports: The ports of the consoles.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports, self._turn = list(ports), count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self._server = started.result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def console_of(self, session: str) -> int:
        """Return the number of the console that has a session while it answers."""
        return zlib.crc32(session.encode()) % len(self._ports)

    def close(self) -> None:
        """End the proxy and its connections."""

        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request on, with the bytes that follow it in both directions."""
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" not in head.lower():
                # The next request of this connection may belong to another session.
                head = _CONNECTION.sub(b"", head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            to_console = await self._connect(head)
            if to_console is not None:
                console, console_writer = to_console
                console_writer.write(head)
                await asyncio.gather(_pass(reader, console_writer), _pass(console, writer))
        writer.close()

    async def _connect(
        self, head: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        cookie = _COOKIE.search(head)
        first = next(self._turn) if cookie is None else self.console_of(cookie[1].decode())
        for number in range(first, first + len(self._ports)):
            with suppress(OSError):
                port = self._ports[number % len(self._ports)]
                return await asyncio.open_connection("127.0.0.1", port)
        return None


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until one side ends."""
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()
