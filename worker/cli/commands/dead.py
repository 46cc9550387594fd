"""``training-worker dead``: the jobs that failed through no fault of their own."""

from typing import Any, Literal

from tasks.client import Client
from tasks.errors import ErrorCode, JobError
from tasks.events import Progress
from tasks.settings.settings import Settings
from tasks.state.record import JobRecord
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout
from worker.cli.tables import dead_table


def run(
    settings: Settings,
    *,
    action: Literal["ls", "replay", "drop"],
    job_ids: tuple[str, ...] = (),
    all_jobs: bool = False,
    json: bool,
) -> None:
    """List dead jobs, let some go on where they failed, or take them off the list."""
    client = client_of(settings)
    records = client.control.dead()
    if action == "ls":
        if json:
            print_json([_document(client, record) for record in records])
        else:
            stdout.print(dead_table(records))
        return
    if all_jobs == bool(job_ids):
        raise JobError("name the jobs, or give --all", ErrorCode.INVALID_STATE)
    do = client.replay if action == "replay" else client.control.drop_dead
    done = {"replay": "replayed", "drop": "dropped"}[action]
    for job_id in job_ids or [record.id for record in records]:
        do(job_id)
        if json:
            print_json({"job_id": job_id, "done": done})
        else:
            stdout.print(f"job {job_id} is {done}", markup=False)


def _document(client: Client, record: JobRecord) -> dict[str, Any]:
    """A dead job with its history: every event but the steps."""
    history = [
        {"at": int(position.partition("-")[0]) / 1000, **event.model_dump(mode="json")}
        for position, event in client.state.events(record.id)
        if not isinstance(event, Progress)
    ]
    return {**record.model_dump(mode="json"), "history": history}
