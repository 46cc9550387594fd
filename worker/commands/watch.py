"""``training-worker watch``."""

from tasks.settings import Settings
from worker.client import Client
from worker.follow import follow
from worker.output import print_json, stdout
from worker.tables import stage_table


def run(settings: Settings, *, job_id: str, json: bool) -> None:
    """Follow a job to its end."""
    show_to_the_end(Client(settings), job_id, json=json)


def show_to_the_end(client: Client, job_id: str, *, json: bool) -> None:
    """Follow a job, then tell what came of it."""
    record = follow(client, job_id, as_json=json)
    result = record.result or {}
    if json:
        print_json({"job_id": job_id, "status": record.status, **result})
        return
    stdout.print(stage_table(record))
    stdout.print(f"published: {result['published']}", soft_wrap=True, markup=False)
