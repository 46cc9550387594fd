"""How commands print: text and tables for people, one JSON document a line for programs."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.errors import JobError
from tasks.escaping import escaped, escaped_lines

# A pipe or a file has no width: nothing is folded there, for grep and for people.
_UNFOLDED_WIDTH = 2000


class FoldedTable(Table):
    """A table that folds what is too wide for the terminal, and cuts nothing off."""

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(header, *args, **{"overflow": "fold", **options})


class _PlainConsole(Console):
    """A console that obeys no text: it has no control characters, no markup and no emoji codes.

    Rich renders each string through ``render_str``: what is printed, and the cells and titles of
    tables. A style is an argument, or a ``Text`` of the command's own words.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        is_wide = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
        width = None if is_wide else _UNFOLDED_WIDTH
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich's text; its line ends stay."""
        return super().render_str(escaped_lines(text), **options)


stdout = _PlainConsole()
stderr = _PlainConsole(stderr=True)


def print_table(table: Table, empty: str) -> None:
    """Print a table, or a sentence if it has no row."""
    stdout.print(table if table.row_count else empty)


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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 image`` and ``2 images``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units, like ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join([f"{n} {unit}" for n, unit in parts if n][:2])
