"""Addresses in tenants' secrets: this worker connects to public ones, with TLS."""

from urllib.parse import urlsplit

import httpcore2

from tasks.data.download.ssrf import AddressError, is_allowed, public_addresses


class EndpointError(ValueError):
    """An address must not be connected to.

    Attributes:
        retryable: Its name could not be resolved now.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def check_endpoint(address: str, hosts: frozenset[str]) -> None:
    """Check that a server may be connected to.

    Args:
        address: Its URL.
        hosts: Hosts that may have addresses that are not public, and may be used without TLS.

    Raises:
        EndpointError: It may not.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise EndpointError("is no https:// address") from None
    if parts.scheme in ("http", "https") and is_allowed(host, port, hosts):
        return
    if parts.scheme != "https" or not host or parts.username or parts.query:
        raise EndpointError("is no https:// address")
    try:
        public_addresses(host, port)
    except AddressError as error:
        raise EndpointError(str(error)) from None
    except httpcore2.ConnectError as error:
        raise EndpointError(str(error), retryable=True) from None
