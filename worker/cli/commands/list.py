"""``training-worker list``."""

from tasks.settings.settings import Settings
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout
from worker.cli.tables import job_table


def run(settings: Settings, *, limit: int, json: bool) -> None:
    """List the newest jobs."""
    records = client_of(settings).state.newest(limit)
    if json:
        print_json([record.model_dump(mode="json") for record in records])
    else:
        stdout.print(job_table(records))
