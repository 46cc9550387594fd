"""Protection against server-side request forgery: connections to public addresses only.

A job's URL must not reach what only the worker's machine can reach: its own services, its network,
or a cloud's metadata service with the machine's credentials. The operator may allow single hosts.
"""

import socket
from collections.abc import Iterable
from ipaddress import ip_address

import httpcore2
from anyio import to_thread

from tasks.data.download.pace import PacedStream
from tasks.hosts import is_public

# Each may take the time of a connection attempt; a name may have hundreds.
_MAX_ADDRESSES = 4


class AddressError(ValueError):
    """A host must not be connected to; the message names the host and its address."""


class SsrfGuard(httpcore2.NetworkBackend):
    """Connects to allowed hosts, and to hosts whose addresses are all public.

    It resolves a host once and connects to the address that it checked, so that a second DNS answer
    cannot differ (DNS rebinding). TLS still verifies the host's name, which httpcore2 takes from
    the URL.

    Args:
        hosts: Hosts that may have any address, as ``name`` or ``name:port``.
    """

    def __init__(self, hosts: frozenset[str]) -> None:
        self._hosts = hosts
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first of a host's addresses that accepts.

        Raises:
            AddressError: One of the addresses is not public.
            httpcore2.ConnectError: The host has no address, or none that accepts.
        """
        addresses = _checked_addresses(host, port, self._hosts)
        for address in addresses:
            try:
                return PacedStream(
                    self._sockets.connect_tcp(address, port, timeout, local_address, socket_options)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise AssertionError("a resolved host has an address")


class AsyncSsrfGuard(httpcore2.AsyncNetworkBackend):
    """The same for webhooks, whose sender has a deadline of its own.

    Args:
        hosts: Hosts that may have any address, as ``name`` or ``name:port``.
    """

    def __init__(self, hosts: frozenset[str]) -> None:
        self._hosts = hosts
        self._sockets = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first of a host's addresses that accepts.

        Raises:
            AddressError: One of the addresses is not public.
            httpcore2.ConnectError: The host has no address, or none that accepts.
        """
        # The deadline ends the wait; a name server that hangs keeps only the thread.
        addresses = await to_thread.run_sync(
            _checked_addresses, host, port, self._hosts, abandon_on_cancel=True
        )
        for address in addresses:
            try:
                return await self._sockets.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise AssertionError("a resolved host has an address")


def is_allowed(host: str, port: int, hosts: frozenset[str]) -> bool:
    """Return whether the operator allows a host, by name or by name and port."""
    name = host.lower()
    bracketed = f"[{name}]" if ":" in name else name
    allowed = {entry.lower() for entry in hosts}
    return not allowed.isdisjoint({name, bracketed, f"{bracketed}:{port}"})


def _checked_addresses(host: str, port: int, hosts: frozenset[str]) -> list[str]:
    """Return what to connect to: the host itself if it is allowed, else its public addresses."""
    return [host] if is_allowed(host, port, hosts) else public_addresses(host, port)


def public_addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses.

    Raises:
        AddressError: One of them is not public.
        httpcore2.ConnectError: There is none.
    """
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a valid host name"
        raise httpcore2.ConnectError(f"{host} cannot be resolved: {reason}") from error
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for address in addresses:
        if not is_public(ip_address(address)):
            raise AddressError(
                f"{host} has the address {address}, which is not public; "
                "the operator may allow the host in TRAINING_DATA_HOSTS"
            )
    return addresses[:_MAX_ADDRESSES]
