"""Commands on results: repeat their copies, recover the records of their jobs, and delete them."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import JobId, Json, command
from worker.cli.completion import job_ids
from worker.cli.help import JOBS, MAINTENANCE, Group, about

if TYPE_CHECKING:
    from tasks.client import Client
    from tasks.events import PublishedCopy
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group)


@commands.command(**about("publish 3f2a8c19d0e4", purpose=JOBS, docs="guides/jobs.md"))
@command
def publish(settings: "Settings", job: JobId, json: Json = False) -> int:
    """Repeat the copies of a job's results that failed.

    Those are the destinations of its publish_to whose copy failed. This machine must have the
    store and TRAINING_SECRETS_DIR.
    """
    from tasks.errors import EXIT_CODES, ErrorCode
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, print_warning, stdout

    copies = _copied(settings, client_of(settings), job)
    if json:
        print_json({"job_id": job, "copies": [copy.model_dump(mode="json") for copy in copies]})
    for copy in () if json else copies:
        if copy.error is None:
            stdout.print(f"{copy.url}")
        else:
            print_warning(f"not copied to {copy.target}: {copy.error}")
    is_failed = any(copy.error is not None for copy in copies)
    return EXIT_CODES[ErrorCode.INVALID_DESTINATION] if is_failed else 0


@commands.command(
    **about("recover --dry-run", "recover", purpose=MAINTENANCE, docs="guides/backup.md")
)
@command
def recover(
    settings: "Settings",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be restored; write nothing.")
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="Records that are read in a second.")
    ] = 50.0,
    json: Json = False,
) -> int:
    """Restore the records of finished jobs from the store.

    For a broker that has lost them. Jobs that have a record are left as they are. This machine must
    have the store.
    """
    from dataclasses import asdict

    from tasks.archive import Recovery, listed
    from tasks.errors import EXIT_CODES, ErrorCode
    from tasks.store import Store
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    client = client_of(settings)
    recovery = Recovery(
        Store(settings.resolved_store_url),
        client.state,
        client.ended_jobs,
        settings.job_ttl,
        client.store_results,
        rate,
        dry_run,
    )
    report = recovery.run()
    if json:
        print_json({**asdict(report), "dry_run": dry_run})
    else:
        stdout.print("\n".join(listed(report)))
    return EXIT_CODES[ErrorCode.UNREADABLE_FILE] if report.unreadable_count else 0


@commands.command(
    **about("delete 3f2a8c19d0e4", "delete 3f2a8c19d0e4 --yes", purpose=JOBS, docs="guides/jobs.md")
)
@command
def delete(
    settings: "Settings",
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB",
            help="Ids of jobs that have ended.",
            show_default=False,
            autocompletion=job_ids,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete ended jobs, with all of their results.

    Published files, checkpoints, samples and events go.
    Usage and the audit log stay. The fleet's maintenance removes the files from the store.
    """
    from tasks.errors import InvalidStateError
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    client = client_of(settings)
    for job_id in jobs if not yes else ():
        record = client.state.get(job_id)
        if not record.status.ended:
            raise InvalidStateError(job_id, f"{record.status}; cancel it before you delete it")
        _confirm(
            f"Delete {record.status} job {job_id} ({record.title or record.name}) and its files?"
        )
    for job_id in jobs:
        client.delete(job_id, command_line_actor())
        if not json:
            stdout.print(f"job {job_id} is deleted")
    if json:
        print_json([{"job_id": job_id, "action": "deleted"} for job_id in jobs])


def _confirm(question: str) -> None:
    """Ask a question, and end the command unless a person says yes.

    Raises:
        UsageError: The input is no terminal.
    """
    import sys

    from tasks.errors import UsageError
    from tasks.escaping import escaped

    if not sys.stdin.isatty():
        raise UsageError("add --yes to delete without a question")
    typer.confirm(escaped(question), abort=True)


def _copied(settings: "Settings", client: "Client", job_id: str) -> "tuple[PublishedCopy, ...]":
    """Copy a job's results, and record what became of each copy.

    Raises:
        UnknownJobError: There is no such job.
        InvalidStateError: It has published nothing yet, or has no destinations.
    """
    import json
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from tasks.access.tenant_secrets import TenantSecrets
    from tasks.archive import archive_record
    from tasks.destinations.copying import Copiers
    from tasks.destinations.results import Results
    from tasks.errors import InvalidStateError
    from tasks.events import Artifact
    from tasks.store import Store

    record = client.state.get(job_id)
    key = record.artifacts.manifest
    if not record.status.ended or key is None:
        raise InvalidStateError(job_id, f"{record.status} and has published nothing")
    if not record.job.publish_to:
        raise InvalidStateError(job_id, "without publish_to; there is nowhere to copy it")
    store = Store(settings.resolved_store_url)
    files = tuple(Artifact.model_validate(it) for it in json.loads(store.get(key))["files"])
    copiers = Copiers(TenantSecrets(settings.secrets_dir), settings.data_access().hosts)
    with (
        client.ended_jobs.holding_results(job_id) as hold,
        TemporaryDirectory(prefix="training-worker-") as folder,
    ):
        results = Results(job_id, record.job, files, key, store, Path(folder))
        made = copiers.copies(results, record.artifacts.copies, hold, hold)
        copies = tuple(copy for copy, _ in made)
        client.ended_jobs.record_copies(record, copies)
        archive_record(store, client.state, job_id)
    return copies
