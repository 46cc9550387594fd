"""Commands on the dead-letter queue: jobs that failed because of the fleet."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.command import Json, command
from worker.cli.completion import job_ids
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from tasks.client import Client
    from tasks.settings.settings import Settings
    from tasks.state.record import JobRecord

commands = typer.Typer(
    cls=Group,
    help="Manage the dead-letter queue: jobs that the fleet failed.",
    no_args_is_help=True,
)

Jobs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="JOB", help="The jobs' ids.", show_default=False, autocompletion=job_ids
    ),
]
AllJobs = Annotated[bool, typer.Option("--all", help="All jobs in the queue.")]


@commands.command("list", **about("dead-letter list", docs="guides/failures.md"))
@command
def list_jobs(settings: "Settings", json: Json = False) -> None:
    """List the jobs, the oldest failure first.

    With --json, each job has its history.
    """
    from worker.cli.client import client_of
    from worker.cli.reports.job_tables import dead_letter_table
    from worker.cli.reports.output import print_json, print_table

    client = client_of(settings)
    records = client.control.dead_letters()
    if json:
        print_json([_document(client, record) for record in records])
    else:
        print_table(dead_letter_table(records), "no job is in the dead-letter queue")


@commands.command(
    **about(
        "dead-letter replay 3f2a8c19d0e4", "dead-letter replay --all", docs="guides/failures.md"
    )
)
@command
def replay(
    settings: "Settings", jobs: Jobs = None, all_jobs: AllJobs = False, json: Json = False
) -> None:
    """Resume jobs from the stage and the checkpoint where they failed."""
    from tasks.state.audit import command_line_actor

    client, job_ids = _named_jobs(settings, jobs, all_jobs)
    for job_id in job_ids:
        client.replay(job_id, command_line_actor())
        _report(job_id, "replayed", json)


@commands.command(**about("dead-letter discard 3f2a8c19d0e4", docs="guides/failures.md"))
@command
def discard(
    settings: "Settings", jobs: Jobs = None, all_jobs: AllJobs = False, json: Json = False
) -> None:
    """Remove jobs from the queue; their records stay."""
    from tasks.state.audit import command_line_actor

    client, job_ids = _named_jobs(settings, jobs, all_jobs)
    for job_id in job_ids:
        client.discard(job_id, command_line_actor())
        _report(job_id, "discarded", json)


def _named_jobs(
    settings: "Settings", jobs: list[str] | None, all_jobs: bool
) -> "tuple[Client, list[str]]":
    """Connect to the fleet, and return the jobs that a command line names.

    Raises:
        UsageError: It names no jobs, or names some and gives ``--all`` too.
    """
    from tasks.errors import UsageError
    from worker.cli.client import client_of

    if all_jobs == bool(jobs):
        raise UsageError("name the jobs, or give --all")
    client = client_of(settings)
    return client, jobs or [record.id for record in client.control.dead_letters()]


def _report(job_id: str, action: str, json: bool) -> None:
    from worker.cli.reports.output import print_json, stdout

    if json:
        print_json({"job_id": job_id, "action": action})
    else:
        stdout.print(f"job {job_id} is {action}")


def _document(client: "Client", record: "JobRecord") -> dict[str, Any]:
    """Return a job's record with its history: every event but progress."""
    from tasks.events import Progress

    history = [
        {"at": int(position.partition("-")[0]) / 1000, **event.model_dump(mode="json")}
        for position, event in client.state.events(record.id)
        if not isinstance(event, Progress)
    ]
    return {**record.model_dump(mode="json"), "history": history}
