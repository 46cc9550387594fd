"""The messages of a job's stages: prepare -> cache -> train -> publish, each on its queue.

A message is one of Celery's protocol 2, and names the stages behind it as Celery's chain. It is
made here and not by Celery, so that the script that ends a stage also sends the next one.
"""

import json
from typing import Any, NamedTuple
from uuid import uuid4

from redis import Redis

from routing.queues import stage_queue
from tasks.contract import STAGES, task_name
from tasks.state.record import VERSION, VERSION_HEADER, JobSummary


class StageMessage(NamedTuple):
    """A message that starts a stage.

    Attributes:
        queue: Where it is sent to.
        text: The message.
    """

    queue: str
    text: str


def stage_message(
    job_id: str,
    result_id: str,
    stage: str,
    gpu_queue: str,
    *,
    label: str,
    queue: str | None = None,
    version: int = VERSION,
) -> StageMessage:
    """Return the message that starts a stage.

    It carries the job's id and no data: what stages leave for each other is in the job's record,
    where it is fenced.

    Args:
        job_id: The job.
        result_id: The id of the result that the job's sender waits for, the last stage's.
        stage: The stage.
        gpu_queue: The queue of the job's GPU stages.
        label: What Flower shows of the job; see ``task_label``.
        queue: The queue of this stage; None for that of ``stage_queue``.
        version: The version of the job.
    """
    following = STAGES[STAGES.index(stage) + 1 :]
    chain = [_signature(job_id, result_id, name, gpu_queue, version) for name in following]
    embed = {"callbacks": None, "errbacks": None, "chain": chain[::-1], "chord": None}
    headers = {
        "lang": "py",
        "task": task_name(stage),
        "id": _task_id(stage, result_id),
        # Named as its own root and parent: other jobs' tasks send it, too.
        "root_id": result_id,
        "parent_id": result_id,
        "argsrepr": label,
        "kwargsrepr": "{}",
        # No sender waits for the results of the other stages; all of them keep errors.
        "ignore_result": bool(following),
        VERSION_HEADER: version,
    }
    queue = queue or stage_queue(stage, gpu_queue)
    message = {
        "body": _compact([[job_id], {}, embed]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": headers["id"],
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_tag": headers["id"],
            "priority": 0,
        },
    }
    return StageMessage(queue, _compact(message))


def task_label(job_id: str, name: str, tenant: str) -> str:
    """Return what Flower shows of a job in place of its stages' arguments, and searches."""
    return f"job={job_id} name={name} tenant={tenant}"


def waiting_message(job: JobSummary) -> StageMessage:
    """Return the message of the stage that a job waits for."""
    return stage_message(
        job.id,
        job.result_id,
        job.stage,
        job.gpu_queue,
        label=task_label(job.id, job.name, job.tenant),
        queue=job.pending_queue,
        version=job.version,
    )


def send_waiting(client: Redis, job: JobSummary) -> None:
    """Send the stage that a job waits for. A second message does no harm: a stage begins once."""
    message = waiting_message(job)
    client.lpush(message.queue, message.text)


def _signature(
    job_id: str, result_id: str, stage: str, gpu_queue: str, version: int
) -> dict[str, Any]:
    # An explicit queue overrides every router, and retries keep it.
    options = {
        "queue": stage_queue(stage, gpu_queue),
        "headers": {VERSION_HEADER: version},
        "task_id": _task_id(stage, result_id),
    }
    return {
        "task": task_name(stage),
        "args": [job_id],
        "kwargs": {},
        "options": options,
        "subtask_type": None,
        "immutable": True,
    }


def _compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def _task_id(stage: str, result_id: str) -> str:
    return result_id if stage == STAGES[-1] else str(uuid4())
