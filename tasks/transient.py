"""Classification of request errors: transient ones may succeed on a retry."""

import httpx2


def is_transient(error: Exception) -> bool:
    """Return whether a failed request to the Hub may succeed later."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return isinstance(error, httpx2.TransportError | TimeoutError)
