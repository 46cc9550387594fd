"""The ``Host`` header: which names the console, Flower and the metrics answer to."""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit


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
