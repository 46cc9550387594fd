"""What all commands share: common arguments, and how a command runs and ends.

Modules of commands import typer and the standard library only. Each command imports the rest inside
its function, so that ``--help`` answers at once.
"""

import functools
import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from worker.cli.completion import job_ids

if TYPE_CHECKING:
    from tasks.errors import JobError
    from tasks.process.logging_setup import LogLevel
    from tasks.settings.settings import Settings

logger = logging.getLogger(__name__)

P = ParamSpec("P")

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.yaml", help="The job file, YAML or JSON.", show_default=False)
]
JobId = Annotated[
    str,
    typer.Argument(metavar="JOB", help="The job's id.", show_default=False, autocompletion=job_ids),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Log details, and the traceback of an error.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Log warnings and errors only.")]
ReadyFile = Annotated[Path | None, typer.Option(help="Create this file when ready.")]


def command(function: "Callable[Concatenate[Settings, P], int | None]") -> Callable[..., None]:
    """Turn a function that takes the process's settings first into a typer command.

    The command ends with the exit code that the function returns (None is 0), or with the one of
    the ``JobError`` that it raises. The error is printed to standard error, with ``--json`` as JSON
    to standard output. Every command takes ``-v`` and ``-q``.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        raise typer.Exit(_run(function, *args, **options))

    signature = inspect.signature(function)
    parameters = [*list(signature.parameters.values())[1:], *_LEVEL_PARAMETERS]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_LEVEL_PARAMETERS = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
    for name, annotation in (("verbose", Verbose), ("quiet", Quiet))
)


def checked_tenant(tenant: str) -> str:
    """Return the name of a tenant.

    Raises:
        UsageError: It is not the name of one.
    """
    import re

    from tasks.errors import UsageError
    from tasks.strict_model import PATTERNS, SAFE_NAME

    if len(tenant) > 100 or not re.fullmatch(SAFE_NAME, tenant):
        raise UsageError(f"the tenant {PATTERNS[SAFE_NAME]}")
    return tenant


def finite(value: float | None) -> float | None:
    """Check a number on the command line: NaN and infinity pass typer's own bounds.

    Raises:
        typer.BadParameter: It is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _run(function: Callable[..., int | None], *args: Any, **options: Any) -> int:
    """Run a command's function.

    Returns:
        The exit code.
    """
    from tasks.errors import ErrorCode, JobError
    from tasks.extras import EXTRAS, not_installed
    from tasks.process.file_modes import keep_files_private
    from tasks.process.logging_setup import set_up_logging
    from tasks.settings.settings import load_settings

    as_json = bool(options.get("json"))
    level = _log_level(bool(options.pop("verbose", False)), bool(options.pop("quiet", False)))
    keep_files_private()
    try:
        settings = load_settings()
        if level is not None:
            settings = settings.model_copy(update={"log_level": level})
        if settings.log_level == "debug":
            set_up_logging(settings.log_format, "command", settings.log_level)
        return function(settings, *args, **options) or 0
    except JobError as error:
        logger.debug("the command failed", exc_info=error)
        return _report(error, as_json)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _report(not_installed(error.name), as_json)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        logger.debug("the command failed", exc_info=error)
        message = f"cannot use {error.filename}: {error.strerror}"
        return _report(JobError(message, ErrorCode.UNREADABLE_FILE), as_json)
    except Exception as error:
        if not _is_unavailable_broker(error):
            raise
        message = f"the broker is unavailable: {error}"
        return _report(JobError(message, ErrorCode.NO_BROKER), as_json)


def _log_level(verbose: bool, quiet: bool) -> "LogLevel | None":
    """Return the level that a command line asks for.

    Raises:
        typer.BadParameter: It asks for two.
    """
    if verbose and quiet:
        raise typer.BadParameter("give either -v or -q")
    return "debug" if verbose else "warning" if quiet else None


def _is_unavailable_broker(error: Exception) -> bool:
    """Return whether the broker caused an error; only then are Redis and kombu imported here."""
    import redis
    from kombu.exceptions import OperationalError

    return isinstance(error, redis.ConnectionError | redis.TimeoutError | OperationalError)


def _report(error: "JobError", as_json: bool) -> int:
    """Print an error.

    Returns:
        Its exit code.
    """
    from tasks.errors import EXIT_CODES
    from worker.cli.reports.output import error_document, print_error, print_json

    if as_json:
        print_json({"error": error_document(error)})
    else:
        print_error(error.message)
    return EXIT_CODES[error.code]
