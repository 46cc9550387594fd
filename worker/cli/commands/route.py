"""``training-worker route``."""

from pathlib import Path

from tasks.jobs.job import parse_job
from tasks.settings.settings import Settings
from worker.cli.job_estimate import PreviewPanel
from worker.cli.job_file import read_job_file
from worker.cli.output import print_json, stdout
from worker.cli.tables import route_table


def run(settings: Settings, *, path: Path, json: bool) -> None:
    """Show the GPU memory class a job goes to, and why, and what it would take there."""
    job = parse_job(read_job_file(path))
    route, outlook = job.route(settings.constants), PreviewPanel(settings, job)
    if json:
        print_json({**route.document(), **outlook.document()})
    else:
        stdout.print(route_table(route))
        outlook.show()
