"""Commands that serve the operators' views of a fleet: Flower, the console, the metrics."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import command
from worker.cli.help import SERVERS, Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group)


@commands.command(**about("flower", purpose=SERVERS, docs="guides/monitoring.md"))
@command
def flower(settings: "Settings") -> None:
    """Run Flower, which shows workers, queues and tasks."""
    from tasks.extras import require
    from tasks.process.logging_setup import set_up_logging
    from worker.cli.reports.output import stdout
    from worker.local.embedded_broker import broker_url
    from worker.local.flower import flower_address, run_flower
    from worker.local.ports import check_ports

    require("flower")
    set_up_logging(settings.log_format, "flower", settings.log_level)
    url = broker_url(settings)
    check_ports(settings, ("flower",))
    stdout.print(f"flower: {flower_address(settings)}", soft_wrap=True)
    run_flower(settings, url)


@commands.command(**about("console", purpose=SERVERS, docs="console.md"))
@command
def console(settings: "Settings") -> None:
    """Run the web console and its HTTP API."""
    import os
    import sys

    from tasks.data.read_policy import ANYWHERE
    from tasks.extras import require
    from worker.local.embedded_broker import broker_url

    require("fastapi")
    env, url = dict(os.environ), broker_url(settings)
    env["TRAINING_LOG_LEVEL"] = settings.log_level
    if settings.broker_url is None:
        # The embedded broker of 'up', whose jobs may read everything on this machine.
        env["TRAINING_BROKER_URL"] = url
        env["TRAINING_DATA_ROOTS"] = settings.data_roots or ANYWHERE
    os.execve(sys.executable, [sys.executable, "-P", "-m", "console"], env)


@commands.command(
    **about("metrics", "metrics --markdown", purpose=SERVERS, docs="guides/monitoring.md")
)
@command
def metrics(
    settings: "Settings",
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="List every metric as Markdown instead."),
    ] = False,
) -> None:
    """Serve the fleet's metrics for Prometheus.

    Listens on TRAINING_METRICS_PORT.
    """
    from tasks.errors import ErrorCode, JobError
    from tasks.extras import require
    from tasks.process.logging_setup import set_up_logging
    from tasks.state.connection import connect
    from worker.cli.reference import metrics_page
    from worker.cli.reports.output import stdout
    from worker.local.embedded_broker import broker_url

    if markdown:
        stdout.file.write(metrics_page())
        stdout.file.flush()
        return
    require("prometheus_client")
    if not settings.metrics_port:
        message = "TRAINING_METRICS_PORT is 0: set a port, such as 9464"
        raise JobError(message, ErrorCode.INVALID_STATE)
    from worker.maintenance.exporter import serve

    set_up_logging(settings.log_format, "metrics", settings.log_level)
    client = connect(broker_url(settings))
    stdout.print(f"metrics: {metrics_address(settings)}", soft_wrap=True)
    try:
        serve(
            client, settings.job_ttl, settings.metrics_address, settings.metrics_port,
            settings.host_names,
        )  # fmt: skip
    except OSError as error:
        problem = f"cannot serve {metrics_address(settings)}: {error.strerror}"
        raise JobError(problem, ErrorCode.INVALID_STATE) from error


def metrics_address(settings: "Settings") -> str:
    """Return the address that Prometheus scrapes."""
    host = settings.metrics_address
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.metrics_port}/metrics"
