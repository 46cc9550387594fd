"""``training-worker watch``."""

from tasks.client import Client
from tasks.settings.settings import Settings
from tasks.state.record import JobRecord
from worker.cli.client import client_of
from worker.cli.follow import follow
from worker.cli.output import print_json, stdout
from worker.cli.tables import stage_table


def run(settings: Settings, *, job_id: str, json: bool) -> None:
    """Follow a job to its end."""
    show_to_the_end(client_of(settings), job_id, json=json)


def show_to_the_end(client: Client, job_id: str, *, json: bool) -> None:
    """Follow a job, then tell what came of it."""
    record = follow(client, job_id, as_json=json)
    if json:
        print_json({"job_id": job_id, "status": record.status, **(record.result or {})})
    else:
        show_result(record)


def show_result(record: JobRecord) -> None:
    """Tell a person what came of a job that has a result."""
    stdout.print(stage_table(record))
    published = (record.result or {})["published"]
    stdout.print(f"published: {published}", soft_wrap=True, markup=False)
