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
from tasks.errors import ErrorCode, JobError, UnreadableJobError
from tasks.jobs.job import TrainingJob
from tasks.strict_model import StrictModel

VERSION = 1
"""Of what is recorded of jobs; see docs/guides/upgrade.md. To be raised with any change that a
worker of the version before could not do right by: it leaves such jobs to newer ones."""

VERSION_HEADER = "training_version"
"""The header of a stage's message that holds the version of its job."""

# The ref of the queue that the cache stage goes to, where it is not the job's GPU queue.
NEXT_QUEUE = "cache_queue"
# The ref of where a tenant's datasets may lie beside what is public, a line each; without it, a
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


class JobSummary(StrictModel):
    """What every version can read of a job, whatever the job is: enough to send it on."""

    id: str
    version: int = VERSION
    """The newest version of this program that has recorded or begun it."""
    name: str
    """What the published file is called."""
    status: JobStatus
    stage: str
    """The stage it is in, or waits for."""
    pending_queue: str | None
    """The queue its next stage waits in; None while a stage runs and when the job is over."""
    attempt: int
    """The newest fencing token."""
    result_id: str
    """The id of the Celery result that follows the whole job."""
    in_tenant_queue: bool
    """It waits for its tenant's turn, and has no message until then."""
    gpu_queue: str
    reason: str
    """Why that queue."""
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    """When a stage that met a passing fault is tried again."""
    retries: int
    """How often the stage was tried again after such a fault."""
    save_on_cancel: bool
    """Somebody cancelled it and wants what there is published."""
    oom_escalated: bool
    """It ran out of GPU memory once and went to the next larger class."""
    refs: dict[str, str]
    """What the stages leave for each other: store keys."""
    error: str | None = None
    error_code: ErrorCode | None = None
    error_stage: str | None = None
    result: dict[str, Any] | None = None

    def failure(self) -> JobError | None:
        """Why it failed; None where it has not."""
        if self.error_code is None:
            return None
        return JobError(self.error or "", self.error_code, self.error_stage or self.stage)


class JobRecord(JobSummary):
    """All that is known of a job."""

    job: TrainingJob
    estimate: Estimate
    """Of its GPU memory, as it was routed by."""
    stages: dict[str, StageRecord]


def head_of(job_id: str, fields: Mapping[str, str]) -> JobSummary:
    """What the fields of a job's hash say of it, whatever the job is.

    Raises:
        UnreadableJobError: They do not say it.
    """
    try:
        return JobSummary.model_validate(_head(job_id, fields))
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableJobError(job_id, _version_in(fields), VERSION, _brief(error)) from error


def record_of(job_id: str, fields: Mapping[str, str]) -> JobRecord:
    """The record that the fields of a job's hash hold.

    Raises:
        UnreadableJobError: A newer version wrote it, or an older one in a form that is not known.
    """
    if _version_in(fields) > VERSION:
        raise UnreadableJobError(job_id, _version_in(fields), VERSION)
    try:
        stages = {
            name: StageRecord.model_validate_json(fields[f"stage:{name}"])
            for name in STAGES
            if f"stage:{name}" in fields
        }
        job = _job_in(fields["job"])
        head = _head(job_id, fields)
        return JobRecord(**head, job=job, estimate=_estimate_in(fields, job), stages=stages)
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableJobError(job_id, _version_in(fields), VERSION, _brief(error)) from error


def _head(job_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    due_at = fields.get("due_at")
    return {
        "id": job_id,
        "version": _version_in(fields),
        "name": json.loads(fields["job"])["name"],
        "status": JobStatus(fields["status"]),
        "stage": _stage_of(fields),
        "pending_queue": waiting_queue(fields),
        "attempt": int(fields["attempt"]),
        "result_id": fields["result_id"],
        "in_tenant_queue": "tenant_queue" in fields,
        "gpu_queue": fields["gpu_queue"],
        "reason": fields["reason"],
        "created_at": datetime.fromtimestamp(float(fields["created_at"]), UTC),
        "updated_at": datetime.fromtimestamp(float(fields["updated_at"]), UTC),
        "due_at": datetime.fromtimestamp(float(due_at), UTC) if due_at else None,
        "retries": int(fields.get("retries", 0)),
        "save_on_cancel": fields.get("save_on_cancel") == "1",
        "oom_escalated": "oom_escalated" in fields,
        "refs": {k.removeprefix("ref:"): v for k, v in fields.items() if k.startswith("ref:")},
        "error": fields.get("error"),
        "error_code": _code_in(fields),
        "error_stage": fields.get("error_stage"),
        "result": json.loads(fields["result"]) if "result" in fields else None,
    }


def _version_in(fields: Mapping[str, str]) -> int:
    """A job's version; the first one did not write it down."""
    return int(fields.get("version", 1))


def _code_in(fields: Mapping[str, str]) -> ErrorCode | None:
    code = fields.get("error_code")
    if code is None:
        return None
    # Newer versions may know more.
    return ErrorCode(code) if code in list(ErrorCode) else ErrorCode.INTERNAL


def _estimate_in(fields: Mapping[str, str], job: TrainingJob) -> Estimate:
    """What the job was routed by; made anew where that was not written down."""
    if "estimate" not in fields:
        return job.training.estimate()
    return Estimate(**json.loads(fields["estimate"]))


def _brief(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in problems)
    return f"{type(error).__name__}: {error}"


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
