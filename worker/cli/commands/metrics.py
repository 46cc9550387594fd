"""``training-worker metrics``."""

import importlib
import sys
from importlib.util import find_spec

from tasks.errors import ErrorCode, JobError, NotInstalledError
from tasks.logging_setup import set_up_logging
from tasks.metrics import METRICS, Metric
from tasks.settings.settings import Settings
from tasks.state.job_store import connect
from worker.cli.client import broker_url
from worker.cli.output import stdout

COMMAND = "training-worker metrics --markdown"

_DOCUMENT = f"""# Metrics

What `training-worker metrics` tells Prometheus. Counters and histograms are kept in the broker, so
they go on when workers and exporters are restarted, and begin anew after `TRAINING_JOB_TTL` without
a count. Made by `{COMMAND}`.

| metric | type | labels | what it tells |
| --- | --- | --- | --- |
"""


def run(settings: Settings, *, markdown: bool) -> None:
    """Serve the fleet's metrics until it is stopped, or list what there is."""
    if markdown:
        sys.stdout.write(document())
        return
    if find_spec("prometheus_client") is None:
        raise NotInstalledError("prometheus-client", "console")
    if not settings.metrics_port:
        raise JobError(
            "TRAINING_METRICS_PORT is 0: set a port, such as 9464", ErrorCode.INVALID_STATE
        )
    set_up_logging(settings.log_format, "metrics")
    client = connect(broker_url(settings))
    stdout.print(f"metrics: {metrics_address(settings)}", soft_wrap=True)
    try:
        importlib.import_module("worker.maintenance.exporter").serve(
            client, settings.job_ttl, settings.metrics_address, settings.metrics_port
        )
    except OSError as error:
        problem = f"{metrics_address(settings)} cannot be served: {error.strerror}"
        raise JobError(problem, ErrorCode.INVALID_STATE) from error


def metrics_address(settings: Settings) -> str:
    """Where Prometheus finds them."""
    host = settings.metrics_address
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.metrics_port}/metrics"


def document() -> str:
    """Every metric, as a page in Markdown."""
    return _DOCUMENT + "".join(f"{_row(metric)}\n" for metric in METRICS)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"
