"""``training-worker metrics``."""

import importlib
from importlib.util import find_spec

from tasks.errors import ErrorCode, JobError, NotInstalledError
from tasks.settings import Settings
from tasks.state import connect
from worker.client import broker_url
from worker.logs import set_up_logging
from worker.output import stdout


def run(settings: Settings) -> None:
    """Serve the fleet's metrics until it is stopped."""
    if find_spec("prometheus_client") is None:
        raise NotInstalledError("prometheus-client", "console")
    if not settings.metrics_port:
        raise JobError("TRAINING_METRICS_PORT is 0: set a port, such as 9500", ErrorCode.NOT_NOW)
    set_up_logging(settings.log_format, "metrics")
    client = connect(broker_url(settings))
    stdout.print(f"metrics: {metrics_address(settings)}", soft_wrap=True)
    try:
        importlib.import_module("worker.exporter").serve(
            client, settings.job_ttl, settings.metrics_address, settings.metrics_port
        )
    except OSError as error:
        problem = f"{metrics_address(settings)} cannot be served: {error.strerror}"
        raise JobError(problem, ErrorCode.NOT_NOW) from error


def metrics_address(settings: Settings) -> str:
    """Where Prometheus finds them."""
    host = settings.metrics_address
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.metrics_port}/metrics"
