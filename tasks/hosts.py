"""Hosts: which names a server answers to, and which addresses are on the public internet."""

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_NAT64 = IPv6Network("64:ff9b::/96")
# Public by number, but reachable only from machines of Azure and of Oracle's cloud.
_METADATA = frozenset({IPv4Address("168.63.129.16"), IPv4Address("192.0.0.192")})


def is_allowed_host(header: str, names: Collection[str]) -> bool:
    """Return whether a ``Host`` header has an IP address, ``localhost`` or one of the names.

    Any other name may belong to a site that made it resolve to this server (DNS rebinding), so
    that its page could read what the server answers.
    """
    try:
        parts = urlsplit(f"//{header}")
        is_name = parts.hostname in {"localhost", *names}
        return parts.username is None and (is_name or bool(ip_address(parts.hostname or "")))
    except ValueError:
        return False


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address, and any IPv4 address embedded in it, is on the public internet."""
    if isinstance(address, IPv6Address) and (embedded := _embedded_addresses(address)):
        return all(is_public(each) for each in embedded)
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    # All are checked, because the meaning of is_global differs between versions of Python.
    return address.is_global and not (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address in _METADATA
    )


def address_in(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a URL's host is, in any form that sockets take; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _embedded_addresses(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address is translated or tunneled to."""
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    return ()
