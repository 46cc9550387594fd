"""Logging of a process: text for a terminal, one JSON object a line for a log collector.

What users sent is escaped: no text writes to the terminal, and none begins a line of its own.
"""

import json
import logging
import sys
import threading
from typing import Any, Literal

from tasks.escaping import escaped, escaped_lines

_EXTRAS = ("job", "stage")


def set_up_logging(log_format: Literal["text", "json"], process: str) -> None:
    """Send this process's logs to standard error, under its name."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = _JsonFormatter if log_format == "json" else _TextFormatter
    handler.setFormatter(formatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Celery's lines on the start and end of tasks repeat those of the stages.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    # Its lines have whole addresses: those of datasets may be signed, and a receiver's a secret.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    threading.excepthook = _log_thread_error


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    name = "a thread" if error.thread is None else error.thread.name
    cause = error.exc_value or error.exc_type()
    logging.getLogger(__name__).error("%s ended by an error", name, exc_info=cause)


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s {process:<11} %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = " ".join(f"{k}={getattr(record, k)}" for k in _EXTRAS if hasattr(record, k))
        text = super().formatMessage(record)
        return escaped(f"{text} [{facts}]" if facts else text)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return escaped_lines(super().formatException(ei), indent="    ")

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return escaped_lines(super().formatStack(stack_info), indent="    ")


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "process": self._process,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{key: getattr(record, key) for key in _EXTRAS if hasattr(record, key)},
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(document, ensure_ascii=False))
