"""Documents that the fleet writes for others: results, errors, webhooks, manifests.

The events of a running job are in ``tasks/events.py``.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field

from tasks.errors import ErrorCode, JobError
from tasks.events import (
    Artifact,
    CheckpointSaved,
    JobAccepted,
    Progress,
    PublishedCopy,
    StageStarted,
    ValidationImages,
)
from tasks.state.record import GpuUse, StageRecord
from tasks.strict_model import StrictModel


class Published(StrictModel):
    """The published files of a job."""

    # A newer version may publish more.
    model_config = ConfigDict(extra="allow")

    published: str
    """Location of the first file: a path, or an address in the store's cloud."""

    manifest: str
    """Location of the manifest."""

    sha256: str
    """SHA-256 digest of the first file, in hex."""

    files: tuple[str, ...]
    """Store keys of all files, the trained weights first."""

    copies: tuple[PublishedCopy, ...] = ()
    """What became of each destination in ``publish_to``, in its order. A copy with an error is no
    failure of the job: the results are in the store."""

    gpu_use: GpuUse = GpuUse()
    """What the job used of GPUs, and what that cost."""


class JobResult(Published):
    """The result of ``training.submit`` when its job has succeeded."""

    job_id: str

    stage: Literal["publish"] = "publish"
    """The job's last stage."""


class KnownJob(StrictModel):
    """The result of ``training.submit`` for a job that 16 results follow already."""

    job_id: str


class RaisedError(NamedTuple):
    """The arguments of the ``JobError`` that a failed job's result raises, in order.

    Celery's JSON results hold them as ``exc_message``.
    """

    message: str
    code: ErrorCode
    stage: str
    retryable: bool


class Failure(StrictModel):
    """Why a job failed."""

    code: ErrorCode

    stage: str | None
    """The stage that failed, or ``submit``."""

    message: str | None
    """One sentence, or a list of problems, one per line."""

    @classmethod
    def of(cls, error: JobError) -> "Failure":
        """Return the failure that an error describes."""
        return cls(code=error.code, stage=error.stage, message=error.message)


class PublishedFiles(StrictModel):
    """The published files of a job, for its tenant."""

    # A newer version may publish more.
    model_config = ConfigDict(extra="allow")

    sha256: str
    """SHA-256 digest of the first file, in hex."""

    files: tuple[str, ...]
    """Names of all files, the trained weights first: `/v1/jobs/ID/files/NAME` in the API."""

    copies: tuple[PublishedCopy, ...] = ()
    """What became of each destination in ``publish_to``, in its order. A copy with an error is no
    failure of the job: the results are in the store."""


class JobEnd(StrictModel):
    """How a job ended."""

    job_id: str

    name: str
    """The name in the job's document."""

    sequence: int | None = None
    """The delivery's number among those of the job's webhook; null in the fleet's own webhook."""

    status: Literal["succeeded", "failed", "cancelled"]

    result: Published | PublishedFiles | None
    """Null if nothing was published. The fleet's own webhook has locations, too."""

    error: Failure | None


class EndWebhook(StrictModel):
    """The body of a webhook at a job's end: the fleet's own, or the job's."""

    type: Literal["job.succeeded", "job.failed", "job.cancelled"]

    timestamp: datetime
    """When the job ended."""

    data: JobEnd


WebhookJobEvent = Annotated[
    JobAccepted | StageStarted | Progress | ValidationImages | CheckpointSaved,
    Field(discriminator="kind"),
]


class JobReport(StrictModel):
    """What happened to a job."""

    job_id: str

    name: str
    """The name in the job's document."""

    sequence: int
    """The delivery's number among those of the job's webhook, in the order of the events."""

    event: WebhookJobEvent


class EventWebhook(StrictModel):
    """The body of a job's own webhook before the job's end."""

    type: Literal["job.accepted", "job.started", "job.progress", "job.sample", "job.checkpoint"]

    timestamp: datetime
    """When it happened. Deliveries may arrive in another order."""

    data: JobReport


Webhook = Annotated[EndWebhook | EventWebhook, Field(discriminator="type")]
"""The body of a webhook."""


class GpuMemory(StrictModel):
    """A job's GPU memory."""

    estimated_bytes: int
    """The estimate that chose the job's queue."""

    peak_bytes: int | None
    """Peak use during training; null on a CPU."""

    checkpointed_blocks: int
    """Blocks of the denoiser that gradient checkpointing recomputed; they change no weight."""


class Engine(StrictModel):
    """The engine that computed a result."""

    name: str

    device: str | None = None
    """Name of the device; null if the job was cancelled during training."""

    versions: dict[str, str] = Field(default_factory=dict)
    """Versions by library."""

    patches: tuple[str, ...] | None = None
    """The patches applied to the engine; null if it needs none."""

    nondeterminism: str | None = None
    """Why a repeated run may differ in its last bits; null if it may not on the same hardware."""

    kernels: dict[str, str] = Field(default_factory=dict)
    """What must be the same for the same bits: the device, on a GPU also the attention kernels that
    it tries in turn and the precision of float32 products."""


class Manifest(StrictModel):
    """``manifest.json`` beside a job's results, written last: all files that it names exist."""

    manifest_version: Literal[1] = 1

    job_id: str

    job: dict[str, Any]
    """The job with every option resolved; addresses without queries and credentials."""

    created_at: datetime
    """When the job was submitted."""

    published_at: datetime

    files: tuple[Artifact, ...]
    """The published files, the trained weights first."""

    dataset: str
    """Store key of the prepared dataset."""

    steps: int
    """Number of weight updates."""

    final_loss: float | None
    """Null if the job was cancelled during training."""

    gpu_memory: GpuMemory

    gpu_use: GpuUse = GpuUse()
    """What the job used of GPUs, and what that cost."""

    stages: dict[str, StageRecord]
    """The record of each stage until ``publish`` ended."""

    engine: Engine
