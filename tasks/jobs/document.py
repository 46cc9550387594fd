"""The limits of a job's document: its size and its depth, checked before anything reads it.

A document may hold one value in many places, as YAML's aliases do: it can be far larger than its
file.
"""

import json
from typing import Any

MAX_DOCUMENT_BYTES = 2**20
"""The maximum size of a job's document as JSON."""
MAX_VALUES = 20_000
"""The maximum number of its keys and values; each may be a problem to report."""
# No job is half as deep, and recursive code is safe far beyond.
_MAX_DEPTH = 32


class DocumentError(ValueError):
    """A document is too large, too deep, or no JSON."""


def plain_document(document: Any) -> Any:
    """Return a document as JSON can carry it: a copy, without shared parts.

    Raises:
        DocumentError: It is too large, too deep, or no JSON.
    """
    _check_size(document)
    try:
        # Text for what JSON has no form of, such as YAML's dates.
        text = json.dumps(document, default=str, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # keys that are not text, numbers of 4,300 digits
        raise DocumentError(f"is not JSON: {error}") from error
    if len(text.encode("utf-8", "surrogatepass")) > MAX_DOCUMENT_BYTES:
        raise too_large()
    return json.loads(text)


def too_large() -> DocumentError:
    """Return the error of a document over the maximum size."""
    return DocumentError(f"is larger than {MAX_DOCUMENT_BYTES:,} bytes as JSON, the maximum")


def too_many() -> DocumentError:
    """Return the error of a document with too many keys and values."""
    return DocumentError(f"has more than {MAX_VALUES:,} keys and values, the maximum")


def _check_size(document: Any) -> None:
    """Check a document's depth and size, in bounded time however often it holds one value."""
    values, length, waiting = 1, 0, [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise DocumentError("is nested too deeply")
        inner: Any = value if isinstance(value, list | tuple) else ()
        if isinstance(value, dict):
            inner = [*value, *value.values()]
        values += len(inner)
        length += len(value) if isinstance(value, str) else 0
        if values > MAX_VALUES:
            raise too_many()
        if length > MAX_DOCUMENT_BYTES:
            raise too_large()
        waiting += [(each, depth + 1) for each in inner]
