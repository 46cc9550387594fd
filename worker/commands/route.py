"""``training-worker route``."""

from pathlib import Path

from tasks.jobs.job import parse_job
from tasks.settings import Settings
from worker.jobfile import read_job_file
from worker.output import print_json, stdout
from worker.tables import route_table


def run(settings: Settings, *, path: Path, json: bool) -> None:
    """Show the GPU memory class a job goes to, and why."""
    route = parse_job(read_job_file(path)).route(settings.constants)
    if json:
        print_json(route.document())
    else:
        stdout.print(route_table(route))
