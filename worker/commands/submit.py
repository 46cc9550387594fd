"""``training-worker submit``."""

from pathlib import Path

from tasks.jobs.job import TrainingJob, parse_job
from tasks.prepare import check
from tasks.settings import Settings
from worker.client import Client
from worker.commands.watch import show_to_the_end
from worker.jobfile import read_job_file
from worker.output import print_json, stderr, stdout
from worker.tables import report_table, route_document, route_table


def run(
    settings: Settings,
    *,
    path: Path,
    watch: bool,
    dry_run: bool,
    require_worker: bool,
    json: bool,
) -> None:
    """Submit a job, or check it from this machine and send nothing."""
    document = read_job_file(path)
    job = parse_job(document)
    if dry_run:
        _dry_run(job, json=json)
        return
    if not json:
        for warning in job.training.warnings():
            stderr.print(f"warning: {warning}", style="yellow", markup=False)
    client = Client(settings)
    job_id = client.submit(document, require_worker=require_worker)
    if json:
        print_json({"job_id": job_id})
    else:
        stdout.print(f"job {job_id}", markup=False)
    if watch:
        show_to_the_end(client, job_id, json=json)


def _dry_run(job: TrainingJob, *, json: bool) -> None:
    route = job.route()
    report = check(job.training)
    warnings = job.training.warnings()
    if json:
        document = {"job": job.model_dump(mode="json"), "route": route_document(route)}
        print_json({**document, "warnings": warnings, "data_set": report.document()})
        return
    stdout.print(route_table(route))
    stdout.print(report_table(report))
    for warning in warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False)
    stdout.print("the job can run; nothing was sent")
