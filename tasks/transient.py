"""Which errors are transient: the same request may succeed later."""

import httpx2


def is_transient(error: Exception) -> bool:
    """Whether a request to the Hub that failed so may succeed after a while."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return isinstance(error, httpx2.TransportError)
