"""``training-worker status``."""

from tasks.records import JobStatus
from tasks.settings import Settings
from worker.client import Client
from worker.output import print_json, stdout
from worker.tables import stage_table


def run(settings: Settings, *, job_id: str, json: bool) -> None:
    """Show where a job is, and what it waits for."""
    client = Client(settings)
    record = client.state.get(job_id)
    waits = None
    if record.status == JobStatus.PAUSED:
        waits = f"{record.stage} waits until somebody resumes the job"
    elif record.due_at is not None:
        waits = f"{record.stage} is tried again at {record.due_at.astimezone():%H:%M:%S}"
    elif record.in_lane:
        before = client.lanes.before(record) or 0
        turn = f"a turn of tenant {record.job.tenant}, after {before} other jobs of it"
        waits = client.why_waiting(record.waiting_in or "") or f"{record.stage} waits for {turn}"
    elif record.waiting_in is not None:
        reason = client.why_waiting(record.waiting_in)
        waits = reason or f"{record.stage} waits in {record.waiting_in} for a free worker"
    if json:
        print_json({**record.model_dump(mode="json"), "waits": waits})
        return
    stdout.print(stage_table(record))
    stdout.print(f"status: {record.status}")
    if waits:
        stdout.print(f"waits: {waits}", soft_wrap=True, markup=False)
    if record.error:
        stdout.print(f"{record.error_code} in {record.error_stage}: {record.error}", markup=False)
    if record.result:
        stdout.print(f"published: {record.result['published']}", soft_wrap=True, markup=False)
