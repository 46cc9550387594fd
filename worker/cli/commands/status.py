"""``training-worker status``."""

from datetime import UTC, datetime

from routing.classes import GIB
from tasks.eta.estimate import time_left, told_by
from tasks.settings.settings import Settings
from tasks.stages.train import memory_of
from tasks.state.record import JobRecord
from tasks.tracing.spans import has_endpoint, trace_id
from worker.cli.client import client_of
from worker.cli.job_estimate import left_line
from worker.cli.output import print_json, stdout
from worker.cli.tables import stage_table


def run(settings: Settings, *, job_id: str, json: bool) -> None:
    """Show where a job is, and what it waits for."""
    client = client_of(settings)
    record = client.state.get(job_id)
    waits = client.waits_for(record)
    told = told_by(event for _, event in client.state.events(job_id))
    now = datetime.now(UTC)
    trace = f"{trace_id(job_id):032x}"
    left = time_left(record, client.durations.learned(), now, told)
    if json:
        document = {**record.model_dump(mode="json"), "waits": waits, "trace_id": trace}
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
    if has_endpoint():
        stdout.print(f"trace: {trace}")
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
