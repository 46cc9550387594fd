"""``training-worker submit``."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.data.sources import Sources
from tasks.data.uploads import StoredUploads
from tasks.errors import EXIT_CODES, DatasetError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.settings.settings import Settings
from tasks.stages.prepare import check
from tasks.store import Store
from worker.cli.client import client_of
from worker.cli.commands.watch import show_to_the_end
from worker.cli.job_estimate import PreviewPanel
from worker.cli.job_file import read_job_file
from worker.cli.output import error_document, print_json, stderr, stdout
from worker.cli.tables import report_table, route_table


def run(
    settings: Settings,
    *,
    path: Path,
    watch: bool,
    dry_run: bool,
    require_worker: bool,
    json: bool,
) -> int:
    """Submit a job, or check it from this machine and send nothing.

    Returns:
        The exit code.
    """
    document = read_job_file(path)
    job = parse_job(document)
    if dry_run:
        return _dry_run(settings, job, json=json)
    if not json:
        for warning in job.warnings():
            stderr.print(f"warning: {warning}", style="yellow", markup=False)
    client = client_of(settings)
    job_id = client.submit(document, require_worker=require_worker)
    waits = client.why_waiting(client.state.get(job_id).gpu_queue)
    if json:
        print_json({"job_id": job_id, "waits": waits})
    else:
        stdout.print(f"job {job_id}", markup=False)
        if waits:
            stderr.print(f"warning: {waits}", style="yellow", markup=False, soft_wrap=True)
    if watch:
        show_to_the_end(client, job_id, json=json)
    return 0


def _dry_run(settings: Settings, job: TrainingJob, *, json: bool) -> int:
    """Check a job from here.

    Returns:
        The exit code.
    """
    route = job.route(settings.constants)
    with TemporaryDirectory() as scratch:
        uploads = StoredUploads(Store(settings.resolved_store_url), job.tenant)
        sources = Sources(
            settings.data_access(), settings.downloads_dir, Path(scratch), uploads=uploads
        )
        report = check(job.training, sources)
    warnings = job.warnings()
    error = DatasetError(report.problems, "prepare") if report.problems else None
    code = EXIT_CODES[error.code] if error else 0
    outlook = PreviewPanel(settings, job, report.buckets.values())
    if json:
        document = {
            "job": job.model_dump(mode="json"),
            "route": route.document(),
            **outlook.document(),
        }
        failed = {"error": error_document(error)} if error else {}
        print_json({**document, "warnings": warnings, "dataset": report.document(), **failed})
        return code
    stdout.print(route_table(route))
    stdout.print(report_table(report))
    for warning in warnings:
        stderr.print(f"warning: {warning}", style="yellow", markup=False)
    if error:
        stderr.print(f"[red]error[/]: the dataset has {len(report.problems)} faults; see above")
    else:
        outlook.show()
        stdout.print("the job can run; nothing was sent")
    return code
