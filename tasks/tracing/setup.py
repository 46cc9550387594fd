"""Whether traces of jobs are sent, and by whom; imports OpenTelemetry only where they are."""

import importlib
from typing import Any

from tasks.errors import NotInstalledError
from tasks.settings.settings import Settings


def tracer_of(settings: Settings, worker: str) -> Any:
    """The ``tasks.tracing.otlp.Tracer`` of this process; None where traces go nowhere.

    Args:
        settings: Say where they go.
        worker: The process's name in them.

    Raises:
        NotInstalledError: Traces are wanted, and OpenTelemetry is not there.
    """
    if settings.traces_url is None:
        return None
    try:
        tracing = importlib.import_module("tasks.tracing.otlp")
    except ModuleNotFoundError as error:
        what = "OpenTelemetry, which TRAINING_TRACES_URL needs,"
        raise NotInstalledError(what, "tracing") from error
    return tracing.Tracer(settings.traces_url, worker)
