"""Models of what pages show and the API returns: frozen, JSON, and limited to what the caller sees.

A field that only operators see is null for tenants, and its description says so.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.eta.estimate import Basis
from tasks.events import Event
from tasks.jobs.job import TrainingJob
from tasks.state.record import GpuUse, JobStatus
from tasks.state.tenants.quotas import Quota
from tasks.state.tenants.usage import Usage

COMPONENT = "x-component"
"""Keyword of a plain mapping's schema: the schema of the API's description that describes it."""


class View(BaseModel):
    """Base of all views."""

    model_config = ConfigDict(
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


class ProgressView(View):
    """Progress of the current stage."""

    stage: str
    done: int
    total: int
    unit: str
    per_second: float | None
    loss: float | None
    learning_rate: float | None


class StageView(View):
    """A stage of a job."""

    name: str
    queue: str | None
    """Null until the stage has started."""
    worker: str | None
    started_at: datetime | None
    seconds: float | None
    """Duration; null until the stage has finished."""
    summary: str | None


class ErrorView(View):
    """Why a job did not succeed."""

    code: str
    stage: str | None
    message: str


class ResultView(View):
    """Result of a job that has published something."""

    # A newer version may publish more.
    model_config = ConfigDict(extra="allow")

    files: tuple[str, ...]
    """Names of the published files, the trained weights first."""
    sha256: str | None = None
    """SHA-256 digest of the first file, in hex."""
    published: str | None = None
    """Location of the first file; null for tenants."""
    manifest: str | None = None
    """Location of the manifest; null for tenants."""


class JobView(View):
    """A job."""

    id: str
    name: str
    """Name of the published file, without its ending."""
    title: str | None
    """What people call the job; null for its name."""
    notes: str | None
    """What people wrote about the job."""
    tenant: str
    type: str
    preset: str | None
    labels: dict[str, str]
    metadata: dict[str, Any]
    priority: int
    """The priority among the tenant's jobs, which may have been changed since submit."""
    moved_to_front_at: datetime | None
    """When the job was moved in front of its tenant's jobs, whatever their priorities."""
    status: JobStatus
    stage: str
    """The current stage, or the one that the job waits for."""
    waiting_reason: str | None
    """Why the job waits; null when it runs or has ended."""
    position: int | None
    """Place among its tenant's jobs in front of the queue that it waits for, from 1; null when it
    waits there no more."""
    jobs_before: int | None
    """Number of jobs of all tenants that are expected to start before it; null when it does not
    wait or the number is unknown."""
    estimated_start_at: datetime | None
    """When the stage that it waits for is expected to start, if no other job is submitted; null
    when it does not wait or the time is unknown."""
    estimated_start_unknown: str | None
    """Why that time is unknown."""
    queue: str
    """Queue of the job's GPU stages."""
    routing_reason: str
    """Why the job goes to that queue."""
    memory_gib: dict[str, float]
    """Estimated GPU memory by part."""
    needed_gib: float
    """Estimated GPU memory."""
    created_at: datetime
    updated_at: datetime
    progress: ProgressView | None
    estimated_end_at: datetime | None
    """When the job ended, or is expected to end; null when unknown."""
    stages: tuple[StageView, ...]
    gpu_use: GpuUse
    """GPU seconds by memory class, and their cost; of starts that have ended."""
    error: ErrorView | None
    sample: str | None
    """Name of the newest validation image; null without any."""
    result: ResultView | None
    """Null for a job that has published nothing."""


class JobPage(View):
    """A page of jobs, newest first."""

    jobs: tuple[JobView, ...]
    next_cursor: str | None
    """Cursor of the next page; null on the last page."""


class PriceView(View):
    """Estimated price of a job."""

    amount: float | None
    """Null when the job's duration is unknown."""
    min_amount: float
    """Price of the stages whose duration is known."""
    per_hour: float
    gpu_hours: float | None
    currency: str | None
    """Null if the operator does not name it."""


class RouteView(View):
    """Where a job would run."""

    queue: str
    """Queue of the job's GPU stages."""
    memory_class: str
    engine: str
    reason: str
    needed_gib: float
    """Estimated GPU memory."""
    parts_gib: dict[str, float]
    """Estimated GPU memory by part."""
    system_memory_gb: int
    """Memory that the machine should have."""
    checkpointed_blocks: int
    """Blocks of the denoiser that are recomputed."""
    blocks: int
    """All blocks of the denoiser."""
    emulated: bool
    """Whether all live GPUs of the class are emulated on CPUs, which train tiny models only."""


class StageEstimateView(View):
    """Expected wait and duration of a stage."""

    stage: str
    queue: str
    wait_s: float | None
    """Seconds until it starts; null when unknown."""
    waits: int
    """Number of waits that ``wait_s`` comes from."""
    seconds: float | None
    """Duration; null when unknown."""
    runs: int
    """Number of runs that ``seconds`` comes from."""
    scaled_from: dict[str, Any] | None
    """The workload of these runs, if it is another one."""
    unknown: str | None
    """Why ``seconds`` is unknown."""
    basis: Basis | None
    """Where ``seconds`` comes from: ``measured`` and ``scaled`` are runs of this fleet,
    ``published`` is another trainer's figure; null when unknown or when there is nothing to do."""
    reference: str | None
    """Who published the speed; null unless ``basis`` is ``published``."""


class EstimateView(View):
    """Expected duration of a job."""

    stages: tuple[StageEstimateView, ...]
    total_s: float | None
    """Seconds to the end; null when a part is unknown."""
    at_least_s: float
    """Sum of the known parts, in seconds."""
    unknown: tuple[str, ...]
    """Names of the unknown parts."""


class Finding(View):
    """A problem or warning about a file of a dataset."""

    severity: str
    """``error`` or ``warning``."""
    file: str
    message: str
    remedy: str


class DatasetView(View):
    """Report on a dataset."""

    images: int
    """Number of valid images."""
    findings: tuple[Finding, ...]
    buckets: dict[str, int]
    """Number of images by training size."""


class Preview(View):
    """What would happen to a job."""

    job: TrainingJob
    """The job with its preset's values and all defaults."""
    route: RouteView
    warnings: tuple[str, ...]
    """Options that are valid but probably not intended."""
    waiting_reason: str | None
    """Why no live worker would run the job; null when one would."""
    estimate: EstimateView
    price: PriceView | None
    """Null when the operator has not set prices."""
    file_bytes: int | None
    """Size of the trained file, from the LoRA's rank and layers; null for other types."""
    dataset: DatasetView | None
    """Null when the dataset was not checked."""
    error: ErrorView | None
    """Why the job would fail; null when no problem was found."""


class SampleView(View):
    """A validation image."""

    step: int
    name: str
    prompt: str | None
    size: int


class FileView(View):
    """A published file."""

    name: str
    size: int
    sha256: str
    step: int | None
    """The step whose weights it holds; null for another file."""


class FilesView(View):
    """Published files of a job."""

    files: tuple[FileView, ...]
    """Files, the trained weights first."""
    manifest: dict[str, Any] | None = Field(json_schema_extra={COMPONENT: "Manifest"})
    """Null until the job has published."""


class UploadView(View):
    """An upload."""

    id: str
    name: str
    tenant: str
    length: int
    """Size of the complete upload in bytes."""
    offset: int
    """Number of bytes received."""
    sha256: str | None
    """Null until the upload is complete."""
    created_at: datetime

    @property
    def is_complete(self) -> bool:
        """Whether a job can name the upload."""
        return self.sha256 is not None

    @property
    def source(self) -> str:
        """Name of the upload in a job's ``archive`` option."""
        return f"upload:{self.id}"


class ImageView(View):
    """An image of an upload."""

    number: int
    """Number of the image's thumbnail."""
    name: str
    caption: str | None
    error: str | None
    """Why the image cannot be read and has no thumbnail."""


class LinkView(View):
    """A link to a file."""

    url: str
    """Address that downloads the file by GET. Anyone who has it can download."""
    expires_at: datetime


class TenantUsage(View):
    """What a tenant used in a month, and its quotas."""

    usage: Usage
    quotas: Quota | None
    """The tenant's quotas of every month; null without any."""


class UsagePage(View):
    """What tenants used in a month."""

    month: str
    """The month in UTC, such as ``2026-11``."""
    tenants: tuple[TenantUsage, ...]
    """The tenants, the one with the most GPU hours first."""


class PresetView(View):
    """A preset."""

    name: str
    type: str
    summary: str
    memory_class: str
    """Memory class of its jobs."""
    needed_gib: float
    recommended: bool
    """Whether it is the best preset of its type for this fleet's GPUs."""
    served: bool
    """Whether a live worker runs its jobs."""
    emulated: bool
    """Whether all live GPUs of its class are emulated on CPUs, which train tiny models only."""
    title: str
    """Its card and purpose in a few words."""
    training: dict[str, Any] = Field(json_schema_extra={COMPONENT: "PartialTraining"})
    """Values of the preset."""


class JobEvent(View):
    """An event of a job, with its position."""

    id: str
    """Position of the event in the job's stream."""
    event: Event
    text: str
    """The event as JSON."""
