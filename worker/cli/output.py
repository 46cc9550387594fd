"""How commands print: text and tables for people, one JSON document a line for programs."""

import json
from typing import Any

from rich.console import Console

from tasks.errors import JobError

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON document on one line, and flush."""
    stdout.file.write(json.dumps(value, ensure_ascii=False) + "\n")
    stdout.file.flush()


def print_warning(text: str) -> None:
    """Print a warning to standard error."""
    stderr.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


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
