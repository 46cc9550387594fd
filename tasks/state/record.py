"""The record of a job, as it is read from its hash in Redis."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pydantic import Field, ValidationError

from routing.estimate import Estimate
from routing.queues import stage_queue
from tasks.contract import STAGES
from tasks.errors import ErrorCode, JobError, UnreadableJobError
from tasks.jobs.job import TrainingJob
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.webhook import JobWebhook
from tasks.state.artifacts import JobArtifacts, artifact_field
from tasks.strict_model import StrictModel

VERSION = 2
"""The version of job records; see docs/guides/upgrade.md. Raise it with any change that workers of
the version before cannot handle: they leave such jobs to newer workers."""

VERSION_HEADER = "training_version"
"""The header of a stage's message that holds the version of its job."""


UNSTARTED_FIELD = "unstarted"
"""The field of a job's hash that counts messages whose workers died before the stage began."""

DELETED = "deleted"
"""The status in the tombstone of a deleted job, which is no record."""

_GPU_MS_PREFIX = "gpu_ms:"

# A date out of range and JSON that is nested too deeply have errors of their own.
_MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)

CACHE_QUEUE_FIELD = artifact_field("cache_queue")
"""The field of a job's hash that names the queue of its ``cache`` stage."""


class JobStatus(StrEnum):
    """The status of a job."""

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
        """Whether the job has ended."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class GpuUse(StrictModel):
    """What a job has used of GPUs; a start that runs counts from its end on."""

    seconds: dict[str, float] = Field(default_factory=dict)
    """GPU seconds by the memory class of the queue that they were used for."""
    cost: float | None = 0.0
    """The cost, by the price of each start; null if a GPU had none."""
    currency: str | None = None
    """The currency of the prices, if ``TRAINING_GPU_PRICES`` names one."""


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
    """What every version can read of a job of any kind: enough to send its next stage."""

    id: str
    version: int = VERSION
    """The newest version that has recorded or begun the job."""
    name: str
    """The name of the published file."""
    tenant: str
    type: str
    """The training type."""
    labels: dict[str, str] = Field(default_factory=dict)
    title: str | None = None
    """What people call the job; null for its name."""
    notes: str | None = None
    """What people wrote about the job."""
    priority: int = 0
    """The priority among the tenant's jobs, which may have been changed since submit."""
    moved_to_front_at: datetime | None = None
    """When the job was moved in front of its tenant's jobs, whatever their priorities."""
    gpu_use: GpuUse = GpuUse()
    status: JobStatus
    stage: str
    """The stage that runs or is next."""
    pending_queue: str | None
    """The queue of the next stage; None while a stage runs and after the end."""
    attempt: int
    """The newest fencing token."""
    result_id: str
    """The id of the Celery result that follows the whole job."""
    other_result_ids: tuple[str, ...] = ()
    """The ids of the results of later messages with the same job."""
    in_tenant_queue: bool
    """The job waits for its tenant's share and has no message until then."""
    gpu_queue: str
    reason: str
    """Why that queue."""
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    """When the stage is retried after a transient error."""
    retries: int
    """How often the stage was retried after transient errors."""
    save_on_cancel: bool
    """The job was cancelled, and its last checkpoint is to be published."""
    oom_escalated: bool
    """The job ran out of GPU memory once and went to the next larger class."""
    cache_queue: str | None
    """The queue of the ``cache`` stage, if that is not the job's GPU queue."""
    error: str | None = None
    error_code: ErrorCode | None = None
    error_stage: str | None = None
    result: dict[str, Any] | None = None

    def failure(self) -> JobError | None:
        """Return the error that ended the job; None if none did."""
        if self.error_code is None:
            return None
        return JobError(self.error or "", self.error_code, self.error_stage or self.stage)


class JobRecord(JobSummary):
    """Everything that is recorded of a job."""

    job: TrainingJob
    estimate: Estimate
    """The GPU memory that the job was routed by."""
    checkpointed_blocks: int
    """The blocks of the denoiser that are recomputed, as decided at submit."""
    stages: dict[str, StageRecord]
    artifacts: JobArtifacts
    """What the stages have left for each other."""

    @property
    def training(self) -> PipelineConfig:
        """The training config, with the number of recomputed blocks for ``auto``."""
        training = self.job.training
        if training.gradient_checkpointing != "auto":
            return training
        return training.model_copy(update={"gradient_checkpointing": self.checkpointed_blocks})

    @property
    def peak_memory_bytes(self) -> int | None:
        """The peak of its training in GPU memory; None if that is unknown."""
        trained = self.artifacts.trained
        return trained.peak_memory_bytes if trained else None


def parse_summary(job_id: str, fields: Mapping[str, str]) -> JobSummary:
    """Parse what every version can read of a job's hash.

    Raises:
        UnreadableJobError: A field is missing or malformed.
    """
    try:
        return JobSummary.model_validate(_summary_values(job_id, fields))
    except _MALFORMED as error:
        raise _unreadable(job_id, fields, error) from error


def parse_record(job_id: str, fields: Mapping[str, str]) -> JobRecord:
    """Parse a job's hash.

    Raises:
        UnreadableJobError: A newer version wrote it, or a field is missing or malformed.
    """
    version = _version_of(fields)
    if version > VERSION:
        raise UnreadableJobError(job_id, version, VERSION)
    try:
        stages = {
            name: StageRecord.model_validate_json(fields[f"stage:{name}"])
            for name in STAGES
            if f"stage:{name}" in fields
        }
        job = _parse_job(fields["job"])
        if "webhook" in fields:
            webhook = JobWebhook.model_validate_json(fields["webhook"])
            job = job.model_copy(update={"webhook": webhook})
        summary = _summary_values(job_id, fields)
        return JobRecord(
            **summary,
            job=job,
            estimate=_estimate_of(fields, job),
            checkpointed_blocks=int(
                fields.get("checkpointed_blocks", job.training.checkpointed_blocks)
            ),
            stages=stages,
            artifacts=JobArtifacts.of(fields),
        )
    except _MALFORMED as error:
        raise _unreadable(job_id, fields, error) from error


def hash_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return a hash that Lua returned as names and values in turn."""
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def pending_queue(fields: Mapping[str, str]) -> str | None:
    """Return the queue of a job's next stage; None while one runs and after the end."""
    if JobStatus(fields["status"]).ended or fields["stage_state"] == "running":
        return None
    return queue_of(_next_stage(fields), fields["gpu_queue"], _cache_queue(fields))


def queue_of(stage: str, gpu_queue: str, cache_queue: str | None) -> str:
    """Return the queue of a job's stage, given the queues in its record."""
    return (stage == "cache" and cache_queue) or stage_queue(stage, gpu_queue)


def count_in(fields: Mapping[str, str], name: str) -> int:
    """Return a counter in a hash; 0 if it is missing or cannot be read."""
    try:
        return int(fields.get(name, 0))
    except ValueError:
        return 0


def gpu_seconds_of(fields: Mapping[str, str]) -> dict[str, float]:
    """Return the GPU seconds by class in the hash of a job, or of a tenant's month."""
    return {
        field.removeprefix(_GPU_MS_PREFIX): count_in(fields, field) / 1000
        for field in sorted(fields)
        if field.startswith(_GPU_MS_PREFIX)
    }


def _gpu_use_of(fields: Mapping[str, str]) -> GpuUse:
    is_priced = "unpriced_gpu_ms" not in fields
    return GpuUse(
        seconds=gpu_seconds_of(fields),
        cost=count_in(fields, "cost_micros") / 1e6 if is_priced else None,
        currency=fields.get("currency"),
    )


def _summary_values(job_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    due_at = fields.get("due_at")
    job, front_at = json.loads(fields["job"]), fields.get("front_at")
    return {
        "id": job_id,
        "version": _version_of(fields),
        "name": job["name"],
        "tenant": job["tenant"],
        "type": job["training"]["type"],
        "labels": json.loads(fields["labels"]) if "labels" in fields else job.get("labels", {}),
        "title": fields.get("title") or None,
        "notes": fields.get("notes") or None,
        "priority": int(fields.get("priority", job["priority"])),
        "moved_to_front_at": datetime.fromtimestamp(float(front_at), UTC) if front_at else None,
        "gpu_use": _gpu_use_of(fields),
        "status": JobStatus(fields["status"]),
        "stage": _next_stage(fields),
        "pending_queue": pending_queue(fields),
        "attempt": int(fields["attempt"]),
        "result_id": fields["result_id"],
        "other_result_ids": json.loads(fields.get("other_result_ids", "[]")),
        "in_tenant_queue": "tenant_queue" in fields,
        "gpu_queue": fields["gpu_queue"],
        "reason": fields["reason"],
        "created_at": datetime.fromtimestamp(float(fields["created_at"]), UTC),
        "updated_at": datetime.fromtimestamp(float(fields["updated_at"]), UTC),
        "due_at": datetime.fromtimestamp(float(due_at), UTC) if due_at else None,
        "retries": int(fields.get("retries", 0)),
        "save_on_cancel": fields.get("save_on_cancel") == "1",
        "oom_escalated": "oom_escalated" in fields,
        "cache_queue": _cache_queue(fields),
        "error": fields.get("error"),
        "error_code": _error_code_of(fields),
        "error_stage": fields.get("error_stage"),
        "result": json.loads(fields["result"]) if "result" in fields else None,
    }


def _next_stage(fields: Mapping[str, str]) -> str:
    """Return the stage that a job is in or waits for."""
    stage = fields["stage"]
    if fields["stage_state"] != "done" or stage == STAGES[-1]:
        return stage
    return STAGES[STAGES.index(stage) + 1]


def _cache_queue(fields: Mapping[str, str]) -> str | None:
    queue: str | None = json.loads(fields.get(CACHE_QUEUE_FIELD, "null"))
    return queue


def _version_of(fields: Mapping[str, str]) -> int:
    """Return a job's version; the first version did not record it."""
    return int(fields.get("version", 1))


def _error_code_of(fields: Mapping[str, str]) -> ErrorCode | None:
    code = fields.get("error_code")
    if code is None:
        return None
    # A newer version may have codes that this one does not know.
    return ErrorCode(code) if code in list(ErrorCode) else ErrorCode.INTERNAL


def _estimate_of(fields: Mapping[str, str], job: TrainingJob) -> Estimate:
    """Return the estimate that the job was routed by; a new one if it was not recorded."""
    if "estimate" not in fields:
        return job.training.estimate()
    return Estimate(**json.loads(fields["estimate"]))


def _unreadable(job_id: str, fields: Mapping[str, str], error: Exception) -> UnreadableJobError:
    problem = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)
        problem = "; ".join(
            f"{'.'.join(map(str, details['loc']))}: {details['msg']}" for details in problems
        )
    return UnreadableJobError(job_id, _version_of(fields), VERSION, problem)


@lru_cache(maxsize=64)
def _parse_job(text: str) -> TrainingJob:
    """Parse a job's document; a worker reads the same one several times in each stage."""
    return TrainingJob.model_validate_json(text)
