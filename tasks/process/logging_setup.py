"""Logging of a process: text for a terminal, one JSON object a line for a log collector.

What users sent is escaped: no text writes to the terminal, and none begins a line of its own.
"""

import json
import logging
import sys
import threading
from typing import Any, Literal

from tasks.escaping import escaped, escaped_lines

LogLevel = Literal["debug", "info", "warning", "error"]

_EXTRAS = ("tenant", "job", "stage")
_OWN_PACKAGES = ("tasks", "routing", "worker", "console")


def set_up_logging(
    log_format: Literal["text", "json"], process: str, level: LogLevel = "info"
) -> None:
    """Send this process's logs to standard error, under its name.

    Args:
        log_format: Text or JSON.
        process: The name.
        level: The least severe lines that are logged; ``debug`` is that of our packages and of
            Celery's tasks, since other libraries log secrets there.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter = _JsonFormatter if log_format == "json" else _TextFormatter
    handler.setFormatter(formatter(process))
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    for package in _OWN_PACKAGES:
        logging.getLogger(package).setLevel(number)
    is_debug = level == "debug"
    # Celery's lines on the start and end of tasks repeat those of the stages.
    _keep_above("celery.worker.strategy", logging.INFO if is_debug else logging.WARNING)
    _keep_above("celery.app.trace", logging.INFO if is_debug else logging.ERROR)
    # A starting worker answers none of Flower's questions yet; Flower asks again.
    _keep_above("flower.inspector", logging.INFO if is_debug else logging.ERROR)
    # It reports a signal by its number as it stops, and lists Celery's own tasks.
    _keep_above("flower.command", logging.INFO if is_debug else logging.WARNING)
    # Its lines have whole addresses: those of datasets may be signed, and a receiver's a secret.
    _keep_above("httpx2", logging.WARNING)
    threading.excepthook = _log_thread_error


def _keep_above(name: str, level: int) -> None:
    """Keep a library's lines below a level out of the log."""
    logging.getLogger(name).setLevel(max(level, logging.getLogger().level))


def _facts(record: logging.LogRecord) -> dict[str, str]:
    """Return whom and what a line is about."""
    facts = {name: getattr(record, name, None) for name in _EXTRAS}
    return {name: value for name, value in facts.items() if value is not None}


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    name = "a thread" if error.thread is None else error.thread.name
    cause = error.exc_value or error.exc_type()
    logging.getLogger(__name__).error("%s ended by an error", name, exc_info=cause)


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        text = f"%(asctime)s {process:<11} %(levelname)-7s %(message)s"
        super().__init__(text, "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = " ".join(f"{name}={value}" for name, value in _facts(record).items())
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
            **_facts(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(document, ensure_ascii=False))
