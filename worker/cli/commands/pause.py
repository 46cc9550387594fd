"""``training-worker pause`` and ``training-worker resume``."""

from typing import Literal

from tasks.settings.settings import Settings
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout


def run(settings: Settings, *, action: Literal["pause", "resume"], job_id: str, json: bool) -> None:
    """Pause a job, or let it go on."""
    client = client_of(settings)
    if action == "pause":
        client.control.pause(job_id)
    else:
        client.resume(job_id)
    status = client.state.head(job_id).status
    if json:
        print_json({"job_id": job_id, "status": status})
    else:
        stdout.print(f"job {job_id} is {status}", markup=False)
