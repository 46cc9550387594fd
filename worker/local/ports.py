"""The ports of this machine that parts of a fleet listen on."""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from http import HTTPStatus

from tasks.settings.settings import Settings
from worker.errors import PortsTakenError

_TIMEOUT_S = 1.0


def check_ports(settings: Settings, parts: Sequence[str]) -> None:
    """Check that parts can listen on their ports.

    Args:
        settings: They have the port and the address of each part; port 0 is a part that does not
            run.
        parts: ``flower``, ``metrics``, ``console``.

    Raises:
        PortsTakenError: Another program, or another part, listens on one of them.
    """
    problems = []
    with ExitStack() as bound:
        for part in parts:
            port, address = getattr(settings, f"{part}_port"), getattr(settings, f"{part}_address")
            if not port:
                continue
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                bound.enter_context(socket.create_server((address, port), family=family))
            except OSError as error:
                problems.append((part, port, address, os.strerror(error.errno or 0)))
    if problems:
        raise PortsTakenError(problems)


def is_listening(address: str, port: int) -> bool:
    """Whether a program of this machine listens on a port.

    Args:
        address: The address that it listens on; a wildcard is asked by the loopback address.
        port: Its port.
    """
    try:
        socket.create_connection((_reached_by(address), port), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def console_answers(address: str, port: int) -> bool:
    """Whether a console of this machine serves requests: it and its broker are available.

    Args:
        address: The address that it listens on; a wildcard is asked by the loopback address.
        port: Its port.
    """
    # Flower, which asks for free ports, is installed without it.
    import httpx2

    host = _reached_by(address)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1/health"
    try:
        # Not by a proxy of the environment.
        with httpx2.Client(trust_env=False, timeout=_TIMEOUT_S) as client:
            return client.get(url).status_code == HTTPStatus.OK
    except httpx2.HTTPError:
        return False


def _reached_by(address: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
