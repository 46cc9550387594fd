"""Text of users, safe for terminals, logs and messages: no control characters, and bounded."""

import json
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE_BYTES = 4000
"""The maximum size of a message as JSON: it is copied to every log, record and result."""
_MAX_QUOTED = 100
_MAX_LISTED = 10


def escaped(text: str) -> str:
    r"""Return a text on one line, with what does not print as JSON escapes: ``\n``, ``\u001b``.

    These are control characters, line ends, bidirectional and zero-width ones, and lone surrogates.
    A terminal would run them, and a log would begin another line. A JSON document, escaped, keeps
    its meaning.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def escaped_lines(text: str, indent: str = "") -> str:
    """Return a text of several lines with each line escaped and indented."""
    return "\n".join(f"{indent}{escaped(line)}" for line in text.split("\n"))


def shortened(text: str, limit: int = _MAX_QUOTED) -> str:
    """Return a text cut to a number of characters."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def quoted(value: Any) -> str:
    """Return a value of a user's input as messages quote it: one line, cut to 100 characters."""
    # A long text is cut first: only what is shown is copied.
    return shortened(repr(value[: _MAX_QUOTED + 1] if isinstance(value, str) else value))


def listed(texts: Sequence[str]) -> str:
    """Return a user's first texts, each cut to 100 characters, and the number of the rest."""
    first, more = texts[:_MAX_LISTED], len(texts) - _MAX_LISTED
    names = ", ".join(map(shortened, first))
    return names if more <= 0 else f"{names} and {more:,} more"


def safe_message(text: str) -> str:
    """Return a message to people: escaped, bounded, and no line of it looks like another message.

    Its further lines are indented. Of a long message, the beginning and the end stay: what went
    wrong, and a trainer's last words.
    """
    limit = MAX_MESSAGE_BYTES
    while len(json.dumps(message := _in_lines(_without_middle(text, limit)))) > MAX_MESSAGE_BYTES:
        limit = limit * 3 // 4
    return message


def _in_lines(text: str) -> str:
    first, *rest = map(escaped, text.split("\n"))
    return "\n".join([first, *(it if it.startswith("  ") else f"  {it}" for it in rest)])


def _without_middle(text: str, limit: int) -> str:
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} [...] {text[-half:]}"
