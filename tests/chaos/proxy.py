"""The network between a host and the broker, which can be cut and can drop all packets."""

import contextlib
import socket
import threading
from typing import Literal

_CHUNK_BYTES = 65536


class Proxy:
    """Forwards a loopback port to another port.

    Args:
        target: The port of the broker.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode: Literal["open", "cut", "dropping"] = "open"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def cut(self) -> None:
        """Break every connection, open and new."""
        self._mode = "cut"
        self._break_all()

    def drop_packets(self) -> None:
        """Let nothing through, and keep connections open."""
        self._mode = "dropping"

    def heal(self) -> None:
        """Let new connections through, and break connections that have lost data."""
        if self._mode != "open":
            self._mode = "open"
            self._break_all()

    def close(self) -> None:
        """Stop listening."""
        self._mode = "cut"
        # A thread that still accepted might take the connections of the next server, which gets the
        # same descriptor.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self._break_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._mode == "cut":
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK_BYTES):
                if self._mode == "open":
                    sink.sendall(chunk)
        self._break({source, sink})

    def _break_all(self) -> None:
        with self._lock:
            all_open = set(self._open)
        self._break(all_open)

    def _break(self, sockets: set[socket.socket]) -> None:
        with self._lock:
            self._open -= sockets
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
