"""What is known of a job, as it is read back from Redis."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from routing.estimate import Estimate
from routing.queues import stage_queue
from tasks.contract import STAGES
from tasks.errors import ErrorCode, JobError
from tasks.jobs.base import StrictModel
from tasks.jobs.job import TrainingJob

# The ref of the queue that the cache stage goes to, where it is not the job's GPU queue.
NEXT_QUEUE = "cache_queue"
# The ref of where a tenant's data sets may lie beside what is public, a line each; without it, a
# job reads all that its workers may.
READS = "reads"


class JobStatus(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class StageRecord(StrictModel):
    """What happened in one stage."""

    queue: str
    worker: str
    attempt: int
    started_at: float
    """Seconds since 1970, by the broker's clock."""
    seconds: float | None = None
    summary: str | None = None


class JobRecord(StrictModel):
    """All that is known of a job."""

    id: str
    status: JobStatus
    stage: str
    """The stage it is in, or waits for."""
    waiting_in: str | None
    """The queue its next stage waits in; None while a stage runs and when the job is over."""
    attempt: int
    """The newest fencing token."""
    job: TrainingJob
    result_id: str
    """The id of the Celery result that follows the whole job."""
    in_lane: bool
    """It waits for its tenant's turn, and has no message until then."""
    gpu_queue: str
    reason: str
    """Why that queue."""
    estimate: Estimate
    """Of its GPU memory, as it was routed by."""
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    """When a stage that met a passing fault is tried again."""
    tries: int
    """How often the stage was tried again after such a fault."""
    saves: bool
    """Somebody cancelled it and wants what there is published."""
    enlarged: bool
    """It ran out of GPU memory once and went to the next larger class."""
    stages: dict[str, StageRecord]
    refs: dict[str, str]
    """What the stages leave for each other: store keys."""
    error: str | None = None
    error_code: ErrorCode | None = None
    error_stage: str | None = None
    result: dict[str, Any] | None = None


class UnknownJobError(JobError):
    """There is no such job, or its life time is over."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}", ErrorCode.UNKNOWN_JOB)


class SupersededError(JobError):
    """Another start of the stage holds a newer attempt number, or the job is over."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(
            f"attempt {attempt} of job {job_id} is no longer the newest", ErrorCode.SUPERSEDED
        )


def record_of(job_id: str, fields: dict[str, str]) -> JobRecord:
    """The record that the fields of a job's hash hold."""
    due_at = fields.get("due_at")
    stages = {
        name: StageRecord.model_validate_json(fields[f"stage:{name}"])
        for name in STAGES
        if f"stage:{name}" in fields
    }
    refs = {k.removeprefix("ref:"): v for k, v in fields.items() if k.startswith("ref:")}
    try:
        job = _job_in(fields["job"])
        estimate = Estimate(**json.loads(fields["estimate"]))
    except (ValidationError, KeyError, TypeError) as error:
        raise JobError(f"job {job_id} was written by another version: {error}") from error
    return JobRecord(
        id=job_id,
        status=JobStatus(fields["status"]),
        stage=_stage_of(fields),
        waiting_in=waiting_queue(fields),
        attempt=int(fields["attempt"]),
        job=job,
        result_id=fields["result_id"],
        in_lane="lane" in fields,
        gpu_queue=fields["gpu_queue"],
        reason=fields["reason"],
        estimate=estimate,
        created_at=datetime.fromtimestamp(float(fields["created_at"]), UTC),
        updated_at=datetime.fromtimestamp(float(fields["updated_at"]), UTC),
        due_at=datetime.fromtimestamp(float(due_at), UTC) if due_at else None,
        tries=int(fields.get("tries", 0)),
        saves=fields.get("saves") == "1",
        enlarged="enlarged" in fields,
        stages=stages,
        refs=refs,
        error=fields.get("error"),
        error_code=ErrorCode(fields["error_code"]) if "error_code" in fields else None,
        error_stage=fields.get("error_stage"),
        result=json.loads(fields["result"]) if "result" in fields else None,
    )


@lru_cache(maxsize=64)
def _job_in(text: str) -> TrainingJob:
    """The job that a text holds; a worker reads the same one several times in each stage."""
    return TrainingJob.model_validate_json(text)


def waiting_queue(fields: Mapping[str, str]) -> str | None:
    """The queue that a job's next stage waits in; None while one runs and when it is over."""
    if JobStatus(fields["status"]).ended or fields["stage_state"] == "running":
        return None
    return queue_of(_stage_of(fields), fields["gpu_queue"], fields.get(f"ref:{NEXT_QUEUE}"))


def queue_of(stage: str, gpu_queue: str, cache_queue: str | None) -> str:
    """The queue of a job's stage, given those that its record names."""
    return (stage == "cache" and cache_queue) or stage_queue(stage, gpu_queue)


def _stage_of(fields: Mapping[str, str]) -> str:
    """The stage a job is in, or waits for."""
    stage = fields["stage"]
    if fields["stage_state"] != "done" or stage == STAGES[-1]:
        return stage
    return STAGES[STAGES.index(stage) + 1]
