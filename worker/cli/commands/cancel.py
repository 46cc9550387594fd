"""``training-worker cancel``."""

from tasks.settings.settings import Settings
from tasks.tracing.setup import tracer_of
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout


def run(settings: Settings, *, job_id: str, save: bool, json: bool) -> None:
    """Cancel a job, waiting or running."""
    tracer = tracer_of(settings, "cancel")
    client = client_of(settings, None if tracer is None else tracer.send)
    status = client.cancel(job_id, save=save)
    if tracer is not None:
        tracer.close()
    if json:
        print_json({"job_id": job_id, "status": status})
    else:
        stdout.print(f"job {job_id} is {status}", markup=False)
