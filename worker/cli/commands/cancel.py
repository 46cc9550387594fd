"""``training-worker cancel``."""

from tasks.settings.settings import Settings
from tasks.tracing.spans import start_tracing
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout


def run(settings: Settings, *, job_id: str, save: bool, json: bool) -> None:
    """Cancel a job, waiting or running."""
    tracing = start_tracing("cancel")
    client = client_of(settings, tracing.tracer)
    status = client.cancel(job_id, save=save)
    tracing.close()
    if json:
        print_json({"job_id": job_id, "status": status})
    else:
        stdout.print(f"job {job_id} is {status}", markup=False)
