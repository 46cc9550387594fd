"""``training-worker status``."""

from datetime import UTC, datetime

from routing.classes import GIB
from tasks.forecast import time_left, told_by
from tasks.records import JobRecord, JobStatus
from tasks.settings import Settings
from tasks.train import memory_of
from worker.client import Client
from worker.outlook import left_line
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
    told = told_by(event for _, event in client.state.events(job_id))
    now = datetime.now(UTC)
    left = time_left(record, client.durations.learned(), now, told)
    if json:
        document = {**record.model_dump(mode="json"), "waits": waits}
        expected = left and left.document()
        print_json({**document, "gpu_memory": memory_of(record), "expected": expected})
        return
    stdout.print(stage_table(record))
    stdout.print(f"status: {record.status}")
    stdout.print(f"GPU memory: {_memory(record)}")
    if waits:
        stdout.print(f"waits: {waits}", soft_wrap=True, markup=False)
    if left is not None:
        stdout.print(f"time left: {left_line(left, now)}", soft_wrap=True, markup=False)
    if record.error:
        stdout.print(f"{record.error_code} in {record.error_stage}: {record.error}", markup=False)
    if record.result:
        stdout.print(f"published: {record.result['published']}", soft_wrap=True, markup=False)


def _memory(record: JobRecord) -> str:
    told = [f"{record.estimate.needed_gib:.1f} GiB estimated"]
    peak = memory_of(record)["peak_bytes"]
    if peak is not None:
        told.append(f"{peak / GIB:.1f} GiB at its peak")
    return ", ".join(told)
