"""``training-worker cancel``."""

from tasks.settings import Settings
from worker.client import client_of
from worker.output import print_json, stdout


def run(settings: Settings, *, job_id: str, save: bool, json: bool) -> None:
    """Cancel a job, waiting or running."""
    status = client_of(settings).cancel(job_id, save=save)
    if json:
        print_json({"job_id": job_id, "status": status})
    else:
        stdout.print(f"job {job_id} is {status}", markup=False)
