"""Commands on the dead-letter queue: jobs that failed because of the fleet."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.command import Json, command

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.client import Client
    from tasks.settings.settings import Settings
    from tasks.state.record import JobRecord

commands = typer.Typer(
    help="Manage the dead-letter queue: jobs that the fleet failed.",
    no_args_is_help=True,
)

Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="JOB", help="The jobs' ids.", show_default=False)
]
AllJobs = Annotated[bool, typer.Option("--all", help="All jobs in the queue.")]


@commands.command("list")
@command
def list_jobs(settings: "Settings", json: Json = False) -> None:
    """List the jobs, the oldest failure first.

    With --json, each job has its history.
    """
    from worker.cli.client import client_of
    from worker.cli.job_tables import dead_letter_table
    from worker.cli.output import print_json, stdout

    client = client_of(settings)
    records = client.control.dead_letters()
    if json:
        print_json([_document(client, record) for record in records])
    else:
        stdout.print(dead_letter_table(records))


@commands.command()
@command
def replay(
    settings: "Settings", jobs: Jobs = None, all_jobs: AllJobs = False, json: Json = False
) -> None:
    """Resume jobs from the stage and the checkpoint where they failed."""
    _check(jobs, all_jobs)
    client = _client(settings)
    _each(client, jobs, client.replay, "replayed", json=json)


@commands.command()
@command
def discard(
    settings: "Settings", jobs: Jobs = None, all_jobs: AllJobs = False, json: Json = False
) -> None:
    """Remove jobs from the queue; their records stay."""
    _check(jobs, all_jobs)
    client = _client(settings)
    _each(client, jobs, client.control.discard, "discarded", json=json)


def _check(jobs: list[str] | None, all_jobs: bool) -> None:
    """Check that a command names its jobs in one way.

    Raises:
        UsageError: It names none, or gives ``--all`` too.
    """
    from tasks.errors import UsageError

    if all_jobs == bool(jobs):
        raise UsageError("name the jobs, or give --all")


def _client(settings: "Settings") -> "Client":
    from worker.cli.client import client_of

    return client_of(settings)


def _each(
    client: "Client",
    jobs: list[str] | None,
    change: "Callable[[str], object]",
    action: str,
    *,
    json: bool,
) -> None:
    """Change each named job, or each job of the queue if none is named."""
    from worker.cli.output import print_json, stdout

    for job_id in jobs or [record.id for record in client.control.dead_letters()]:
        change(job_id)
        if json:
            print_json({"job_id": job_id, "action": action})
        else:
            stdout.print(f"job {job_id} is {action}", markup=False)


def _document(client: "Client", record: "JobRecord") -> dict[str, Any]:
    """Return a job's record with its history: every event but progress."""
    from tasks.events import Progress

    history = [
        {"at": int(position.partition("-")[0]) / 1000, **event.model_dump(mode="json")}
        for position, event in client.state.events(record.id)
        if not isinstance(event, Progress)
    ]
    return {**record.model_dump(mode="json"), "history": history}
