"""What leaves the fleet for others to read: results, failures, webhooks, manifests.

What is told of a job while it runs is in ``tasks/events.py``.
"""

from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field

from tasks.errors import ErrorCode
from tasks.events import Artifact
from tasks.state.record import StageRecord
from tasks.strict_model import StrictModel


class Published(StrictModel):
    """What a job has published."""

    # Where a newer version did.
    model_config = ConfigDict(extra="allow")

    published: str
    """Where its first file is: a path, or an address in the store's cloud."""

    manifest: str
    """Where its manifest is."""

    sha256: str
    """The digest of the first file, in hex."""

    files: tuple[str, ...]
    """The keys in the store of all its files, the trained weights first."""


class JobResult(Published):
    """The result of ``training.submit``, once its job has succeeded."""

    job_id: str

    stage: Literal["publish"] = "publish"
    """The job's last stage."""


class KnownJob(StrictModel):
    """The result of ``training.submit`` where the job was sent before, under another result id."""

    job_id: str


class RaisedError(NamedTuple):
    """The arguments of the ``JobError`` that a failed job's result raises, in their order.

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
    """The stage it happened in, or ``submit``."""

    message: str | None
    """One sentence, or a list of faults, a line each."""


class JobEnd(StrictModel):
    """How a job ended."""

    job_id: str

    name: str
    """What the job's document calls it."""

    status: Literal["succeeded", "failed", "cancelled"]

    result: Published | None
    """Null where nothing was published."""

    error: Failure | None


class Webhook(StrictModel):
    """The body of a webhook."""

    type: Literal["job.succeeded", "job.failed", "job.cancelled"]

    timestamp: datetime
    """When the job ended."""

    data: JobEnd


class GpuMemory(StrictModel):
    """A job's GPU memory."""

    estimated_bytes: int
    """What it was routed by."""

    peak_bytes: int | None
    """The most that its training took; null on a CPU."""


class Engine(StrictModel):
    """What computed a result."""

    name: str

    device: str | None = None
    """The device's name; null where somebody cancelled the job before the training's end."""

    versions: dict[str, str] = Field(default_factory=dict)
    """Library to version."""

    repairs: tuple[str, ...] | None = None
    """Which faults of the engine were repaired; null where it needs no repair."""


class Manifest(StrictModel):
    """``manifest.json`` beside a job's results, written last: what it names is there."""

    manifest_version: Literal[1] = 1

    job_id: str

    job: dict[str, Any]
    """The job with nothing left open; addresses without queries and credentials."""

    created_at: datetime
    """When the job was submitted."""

    published_at: datetime

    files: tuple[Artifact, ...]
    """The trained weights first."""

    dataset: str
    """The store key of the dataset as it was trained on."""

    steps: int
    """Weight updates made."""

    final_loss: float | None
    """Null where somebody cancelled the job before the training's end."""

    gpu_memory: GpuMemory

    stages: dict[str, StageRecord]
    """What happened in each stage before ``publish`` ended."""

    engine: Engine
