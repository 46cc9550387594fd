"""Redaction of URLs for messages and records: no credentials, queries and fragments."""

import re
from typing import Any
from urllib.parse import urlsplit


def redacted(url: str) -> str:
    """Return a URL without its query, fragment, user and password."""
    scheme = scheme_of(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a password may look like a port
        return f"{scheme}://..."
    if not host:
        return f"{scheme}:..." if scheme else "..."
    host = f"[{host}]" if ":" in host else host
    text = f"{scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"
    return "".join(each if each.isprintable() else "?" for each in text)


def redact_urls(value: Any) -> Any:
    """Return a JSON value with all its URLs redacted: their queries may hold signatures."""
    if isinstance(value, dict):
        return {key: redact_urls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_urls(item) for item in value]
    return redacted(value) if isinstance(value, str) and "://" in value else value


def scheme_of(url: str) -> str:
    """Return a URL's scheme in lower case; empty if it has none."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,15}):", url)
    return "" if match is None else match[1].lower()
