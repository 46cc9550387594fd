"""Commands on jobs: submit, follow, show, list, cancel, pause and resume them."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import JobFile, JobId, Json, command
from worker.cli.help import JOBS, Group, about

if TYPE_CHECKING:
    from datetime import datetime

    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group)

# Narrower terminals show what jobs wait for below the table, not in a column of single words.
WIDE = 120
NO_JOB = "there is no job yet; submit one with 'training-worker submit JOB.yaml'"


@commands.command(
    **about(
        "submit job.yaml --watch", "submit job.yaml --dry-run", purpose=JOBS, docs="guides/jobs.md"
    )
)
@command
def submit(
    settings: "Settings",
    job: JobFile,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check job and dataset from this machine; send nothing."),
    ] = False,
    require_worker: Annotated[
        bool,
        typer.Option("--require-worker", help="Refuse the job unless a live worker can run it."),
    ] = False,
    json: Json = False,
) -> int:
    """Submit a job; warn if no live worker serves its queue."""
    from worker.cli.client import client_of
    from worker.cli.job_file import load_job
    from worker.cli.reports.follow import follow_and_report
    from worker.cli.reports.job_report import show_dry_run
    from worker.cli.reports.output import print_json, print_warning, stdout

    parsed = load_job(job)
    if dry_run:
        return show_dry_run(settings, parsed, json=json)
    if not json:
        for warning in parsed.warnings():
            print_warning(warning)
    client = client_of(settings)
    job_id = client.submit_job(parsed, require_worker=require_worker)
    waiting_reason = client.unserved_reason(client.state.get(job_id).gpu_queue)
    if json:
        print_json({"job_id": job_id, "waiting_reason": waiting_reason})
    else:
        stdout.print(f"job {job_id}")
        if waiting_reason:
            print_warning(waiting_reason)
    if watch:
        follow_and_report(client, job_id, json=json)
    return 0


@commands.command(**about("watch 3f2a8c19d0e4", purpose=JOBS, docs="guides/jobs.md"))
@command
def watch(settings: "Settings", job: JobId, json: Json = False) -> None:
    """Follow a job to its end: stages, progress, loss, time left."""
    from worker.cli.client import client_of
    from worker.cli.reports.follow import follow_and_report

    follow_and_report(client_of(settings), job, json=json)


@commands.command(
    **about(
        "status 3f2a8c19d0e4", "status 3f2a8c19d0e4 --json", purpose=JOBS, docs="guides/jobs.md"
    )
)
@command
def status(settings: "Settings", job: JobId, json: Json = False) -> None:
    """Show a job's stages, time left, and what it waits for."""
    from worker.cli.client import client_of
    from worker.cli.reports.job_report import JobStatusReport
    from worker.cli.reports.output import print_json

    report = JobStatusReport(client_of(settings), job)
    if json:
        print_json(report.document())
    else:
        report.show()


@commands.command(
    "list",
    **about(
        "list --status running",
        "list --tenant acme --since 7d",
        "list --label project=cats --json",
        purpose=JOBS,
        docs="guides/jobs.md",
    ),
)
@command
def list_jobs(
    settings: "Settings",
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of jobs.")] = 20,
    status: Annotated[str | None, typer.Option(help="Jobs of this status.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Jobs of this tenant.")] = None,
    queue: Annotated[
        str | None, typer.Option(help="Jobs that wait in this queue or are for its GPUs.")
    ] = None,
    training_type: Annotated[
        str | None, typer.Option("--type", help="Jobs of this training type.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]", help="Jobs with this label: name=value, or a name; repeatable."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Jobs submitted since then: 90min, 12h, 7d, or a date and time."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the newest jobs, with what each waits for."""
    from tasks.errors import UsageError
    from tasks.state.job_search import JobFilter, find_jobs, parse_labels
    from tasks.state.record import JobStatus
    from worker.cli.client import client_of
    from worker.cli.reports.job_tables import job_table
    from worker.cli.reports.output import print_json, print_table, stdout

    if status is not None and status not in list(JobStatus):
        raise UsageError(f"--status: {status} is none of {', '.join(JobStatus)}")
    try:
        labels = parse_labels(label or ())
        created_after = None if since is None else parse_since(since)
    except ValueError as error:
        raise UsageError(str(error)) from error
    wanted = JobFilter(
        status=status,
        tenant=tenant,
        queue=queue,
        type=training_type,
        labels=labels,
        created_after=created_after,
    )
    client = client_of(settings)
    records = client.state.get_all(find_jobs(client.state, wanted, limit).ids)
    if json:
        for_json = [record.model_dump(mode="json") for record in records]
        reasons = map(client.waiting_reason, records)
        print_json(
            [{**it, "waiting_reason": reason} for it, reason in zip(for_json, reasons, strict=True)]
        )
    else:
        waits = {record.id: client.waiting_text(record) for record in records}
        is_wide = stdout.width >= WIDE
        empty = "no job matches" if wanted != JobFilter() else NO_JOB
        print_table(job_table(records, waits if is_wide else None), empty)
        for job_id, reason in waits.items() if not is_wide else ():
            if reason:
                stdout.print(f"{job_id} waits: {reason}")


def parse_since(text: str) -> "datetime":
    """Parse a time ago, such as ``12h``, or a date and time, in local time unless it says so.

    Raises:
        ValueError: It is neither.
    """
    from datetime import UTC, datetime, timedelta

    units = {"min": 60, "h": 3600, "d": 86400}
    if ago := re.fullmatch(r"(\d{1,6})(min|h|d)", text, re.ASCII):
        return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * units[ago[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise ValueError(f"{text} is neither like 12h nor like 2026-11-29T18:00") from error


@commands.command(
    **about(
        "prioritize 3f2a8c19d0e4 9",
        "prioritize 3f2a8c19d0e4 --front",
        purpose=JOBS,
        docs="guides/tenants.md",
    )
)
@command
def prioritize(
    settings: "Settings",
    job: JobId,
    priority: Annotated[
        int | None,
        typer.Argument(
            min=0,
            max=9,
            metavar="PRIORITY",
            help="0 to 9; 9 is dispatched first.",
            show_default=False,
        ),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Move it in front of all jobs of its tenant.")
    ] = False,
    json: Json = False,
) -> None:
    """Change a waiting job's priority among its tenant's jobs."""
    from tasks.errors import UsageError
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    if (priority is None) != front:
        raise UsageError("give either a priority or --front")
    client = client_of(settings)
    waits = client.prioritize(job, priority, command_line_actor())
    if json:
        print_json({"job_id": job, "priority": priority, "front": front, "waits": waits})
        return
    change = f"has priority {priority}" if front is False else "is in front"
    later = "" if waits else "; it counts when the job waits for its GPU, or again"
    stdout.print(f"job {job} {change}{later}")


@commands.command(
    **about(
        "cancel 3f2a8c19d0e4", "cancel 3f2a8c19d0e4 --save", purpose=JOBS, docs="guides/jobs.md"
    )
)
@command
def cancel(
    settings: "Settings",
    job: JobId,
    save: Annotated[
        bool,
        typer.Option("--save", help="Save a checkpoint first, and publish what was trained."),
    ] = False,
    json: Json = False,
) -> None:
    """Cancel a job, waiting or running."""
    from tasks.errors import InvalidStateError
    from tasks.state.audit import command_line_actor
    from tasks.state.record import JobStatus
    from tasks.tracing.spans import start_tracing
    from worker.cli.client import client_of

    tracing = start_tracing("cancel")
    client = client_of(settings, tracing.tracer)
    status = client.cancel(job, command_line_actor(), save=save)
    tracing.close()
    if status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        raise InvalidStateError(job, f"{status}; there is nothing to cancel")
    _show_status(job, status, json)


@commands.command(**about("pause 3f2a8c19d0e4", purpose=JOBS, docs="guides/jobs.md"))
@command
def pause(settings: "Settings", job: JobId, json: Json = False) -> None:
    """Pause a job; its trainer saves a checkpoint and frees the GPU."""
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of

    client = client_of(settings)
    client.pause(job, command_line_actor())
    _show_status(job, client.state.summary(job).status, json)


@commands.command(**about("resume 3f2a8c19d0e4", purpose=JOBS, docs="guides/jobs.md"))
@command
def resume(settings: "Settings", job: JobId, json: Json = False) -> None:
    """Resume a paused job from its checkpoint."""
    from tasks.state.audit import command_line_actor
    from worker.cli.client import client_of

    client = client_of(settings)
    client.resume(job, command_line_actor())
    _show_status(job, client.state.summary(job).status, json)


@commands.command(
    **about(
        'edit 3f2a8c19d0e4 --title "Cats, second try" --label keep=yes',
        purpose=JOBS,
        docs="guides/jobs.md",
    )
)
@command
def edit(
    settings: "Settings",
    job: JobId,
    title: Annotated[
        str | None, typer.Option(help="What people call the job; empty for its name.")
    ] = None,
    notes: Annotated[str | None, typer.Option(help="Notes about the job; empty for none.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label to set, name=value, or to remove, name; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Change a job's title, notes or labels. Its id and its files keep their names."""
    from tasks.errors import InvalidJobError, UsageError
    from tasks.jobs.edit import JobEdit
    from tasks.jobs.problems import validate
    from tasks.state.audit import command_line_actor
    from tasks.state.job_search import parse_labels
    from worker.cli.client import client_of
    from worker.cli.reports.output import print_json, stdout

    client = client_of(settings)
    fields: dict[str, object] = {"title": title, "notes": notes}
    try:
        set_labels = parse_labels(label or ())
    except ValueError as error:
        raise UsageError(str(error)) from error
    if set_labels:
        labels = {**client.state.summary(job).labels, **set_labels}
        fields["labels"] = {name: text for name, text in labels.items() if text is not None}
    given = {name: value for name, value in fields.items() if value is not None}
    if not given:
        raise UsageError("give --title, --notes or --label")
    changes, problems = validate(given, JobEdit)
    if changes is None:
        raise InvalidJobError(problems)
    client.edit(job, changes, command_line_actor())
    if json:
        print_json({"job_id": job, **changes.changes()})
    else:
        stdout.print(f"job {job} is edited: {', '.join(given)}")


def _show_status(job_id: str, status: str, json: bool) -> None:
    from worker.cli.reports.output import print_json, stdout

    if json:
        print_json({"job_id": job_id, "status": status})
    else:
        stdout.print(f"job {job_id} is {status}")
