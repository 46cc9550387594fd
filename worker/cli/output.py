"""How commands print: tables for people, one JSON document for programs."""

import json
from typing import Any

from rich.console import Console

from tasks.errors import JobError

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on a line of its own, flushed."""
    stdout.file.write(json.dumps(value, ensure_ascii=False) + "\n")
    stdout.file.flush()


def error_document(error: JobError) -> dict[str, object]:
    """An error for programs."""
    return {"code": error.code, "stage": error.stage, "message": error.message}
