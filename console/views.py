"""What the console and its API show: frozen, JSON, and nothing that is not for its reader.

Where tenants may not see what operators do, a field is null for them and says so.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.events import Event
from tasks.jobs.job import TrainingJob


class View(BaseModel):
    """The base of all that is shown."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ProgressView(View):
    """How far the current stage is."""

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
    """Null where it has not begun."""
    worker: str | None
    started_at: datetime | None
    seconds: float | None
    """What it took; null where it is not done."""
    summary: str | None


class ErrorView(View):
    """Why a job did not succeed."""

    code: str
    stage: str | None
    message: str


class JobView(View):
    """A job."""

    id: str
    name: str
    tenant: str
    type: str
    preset: str | None
    priority: int
    status: str
    stage: str
    """The stage it is in, or waits for."""
    waits: str | None
    """What it waits for, in words; null where it runs or is over."""
    queue: str
    """That of its GPU stages."""
    reason: str
    """Why that queue."""
    memory_gib: dict[str, float]
    """Its GPU memory by parts, as it was routed by."""
    needed_gib: float
    created: datetime
    updated: datetime
    progress: ProgressView | None
    expected_end: datetime | None
    """When it is over, or will be by what earlier jobs took; null where that is not known."""
    stages: tuple[StageView, ...]
    error: ErrorView | None
    result: dict[str, Any] | None
    """Of a job that published something: ``files``, their names, and ``sha256`` of the first; for
    operators also ``published``, where it is."""


class JobPage(View):
    """Some of the jobs, newest first."""

    jobs: tuple[JobView, ...]
    next: str | None
    """The cursor that goes on after these; null where there are no more."""


class PriceView(View):
    """What a job would cost."""

    amount: float | None
    """Null where it is not known how long the job takes."""
    at_least: float
    """For the stages of which that is known."""
    per_hour: float
    gpu_hours: float | None


class Finding(View):
    """Something that was found in a dataset."""

    severity: str
    """``error`` or ``warning``."""
    file: str
    message: str
    remedy: str


class DatasetView(View):
    """What was found in a dataset."""

    images: int
    """Good ones."""
    findings: tuple[Finding, ...]
    buckets: dict[str, int]
    """Training size to the number of images."""


class Preview(View):
    """What would become of a job."""

    job: TrainingJob
    """With its preset's values and all defaults."""
    route: dict[str, Any]
    """Memory class, queue and reason, and the GPU memory by parts."""
    warnings: tuple[str, ...]
    """What runs as described and is likely not what its author wants."""
    waits: str | None
    """Why no live worker would take it; null where one would."""
    expected: dict[str, Any]
    """Seconds by stage, their sum, and what of them is not known."""
    price: PriceView | None
    """Null where the operator names no price."""
    dataset: DatasetView | None
    """Null where it was not checked."""
    error: ErrorView | None
    """Why it would fail; null where nothing was found that stops it."""


class Sample(View):
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


class FilesView(View):
    """What a job has published."""

    files: tuple[FileView, ...]
    """The trained weights first."""
    manifest: dict[str, Any] | None
    """Null where nothing is published."""


class UploadView(View):
    """An upload."""

    id: str
    name: str
    tenant: str
    length: int
    """How many bytes it will have."""
    offset: int
    """How many are there."""
    sha256: str | None
    """Null where it is not whole."""
    created: datetime

    @property
    def whole(self) -> bool:
        """Whether a job can name it."""
        return self.sha256 is not None

    @property
    def source(self) -> str:
        """What a job's ``archive`` says to name it."""
        return f"upload:{self.id}"


class ImageView(View):
    """An image of an upload."""

    number: int
    """By which its thumbnail is asked for."""
    name: str
    caption: str | None
    message: str | None
    """Why it cannot be read, and has no thumbnail."""


class WorkerView(View):
    """A live worker."""

    name: str
    queues: tuple[str, ...]
    """First served first."""
    memory_class: str | None
    """Null on the CPU queue."""
    gpu: str | None
    """The product's name."""
    gpu_mib: int
    """0 where it is emulated, or there is none."""
    quarantined: bool
    quarantine_reason: str | None
    """For operators."""
    busy: bool
    job: str | None
    """The id of the job it runs; for those who may see that job."""
    runs: str | None
    """What it does, in words: a job's name, or that it is another tenant's."""


class QueueView(View):
    """A queue, and the lanes in front of it."""

    name: str
    waiting: int
    """Jobs in the queue and in front of it."""
    own: int
    """Those of the asking tenant; for operators all."""
    tenants: dict[str, int] | None
    """By tenant, those in front of it; for operators."""
    usual_wait_s: float | None
    """The median of the waits of late; null where nobody has waited yet."""
    unserved: str | None
    """Why no live worker takes from it; null where one does."""


class FleetView(View):
    """The fleet as it is now."""

    workers: tuple[WorkerView, ...]
    queues: tuple[QueueView, ...]
    """Those of an engine that no live worker has only where a job waits in them."""


class PresetView(View):
    """A preset."""

    name: str
    type: str
    summary: str
    memory_class: str
    """The class that its jobs go to."""
    needed_gib: float
    recommended: bool
    """It makes the most of this fleet's GPUs, of the presets of its type."""
    served: bool
    """A live worker takes its jobs."""
    training: dict[str, Any]
    """Its values."""


class JobEvent(View):
    """An event of a job, with its position."""

    id: str
    """Its position: what to go on after."""
    event: Event
    text: str
    """The event as JSON."""
