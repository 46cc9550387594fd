"""One run of a command: settings in, exit code out, every failure told in one way."""

from collections.abc import Callable
from typing import Any

import redis
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from rich.markup import escape

from tasks.errors import EXIT_CODES, ErrorCode, JobError
from tasks.settings.settings import Settings
from worker.cli.output import error_document, print_json, stderr

_INTERRUPTED = 130  # the shell's code for a command that Ctrl-C ended
_USAGE = 2


def run(command: Callable[..., int | None], **options: Any) -> int:
    """Run a command's function with this process's settings.

    Returns:
        The exit code.
    """
    as_json = bool(options.get("json"))
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = "TRAINING_" + "_".join(str(part) for part in problem["loc"]).upper()
            message = problem["msg"].removeprefix("Value error, ")
            stderr.print(f"[red]error[/]: {name}: {escape(message)}")
        return _USAGE
    try:
        return command(settings, **options) or 0
    except JobError as error:
        return _told(error, as_json)
    except (redis.ConnectionError, redis.TimeoutError, OperationalError) as error:
        return _told(JobError(f"lost the broker: {error}", ErrorCode.NO_BROKER), as_json)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _told(error: JobError, as_json: bool) -> int:
    if as_json:
        print_json({"error": error_document(error)})
    else:
        stderr.print(f"[red]error[/]: {escape(error.message)}")
    return EXIT_CODES[error.code]
