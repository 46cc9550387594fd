"""How commands print: text and tables for people, one JSON document a line for programs."""

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from tasks.errors import JobError
from tasks.escaping import escaped, escaped_lines


class _PlainConsole(Console):
    """A console that obeys no text: it has no control characters, no markup and no emoji codes.

    Rich renders each string through ``render_str``: what is printed, and the cells and titles of
    tables. A style is an argument, or a ``Text`` of the command's own words.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich's text; its line ends stay."""
        return super().render_str(escaped_lines(text), **options)


stdout = _PlainConsole()
stderr = _PlainConsole(stderr=True)


def print_json(value: Any) -> None:
    """Print one JSON document on one line, and flush."""
    stdout.file.write(escaped(json.dumps(value, ensure_ascii=False)) + "\n")
    stdout.file.flush()


def print_error(message: str) -> None:
    """Print an error to standard error."""
    text = Text.assemble(("error", "red"), ": ", stderr.render_str(message))
    stderr.print(text, soft_wrap=True)


def print_warning(text: str) -> None:
    """Print a warning to standard error."""
    stderr.print(f"warning: {text}", style="yellow", soft_wrap=True)


def error_document(error: JobError) -> dict[str, object]:
    """Return an error as JSON."""
    return {"code": error.code, "stage": error.stage, "message": error.message}


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units, like ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join([f"{n} {unit}" for n, unit in parts if n][:2])
