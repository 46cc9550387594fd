"""Events of a job while it runs: typed, one JSON object each.

The same models travel from the trainer over its pipe, one per line, and to the job's readers over
its stream in Redis. ``EventRouter`` calls the handlers for an event's type.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter

from tasks.errors import ErrorCode
from tasks.escaping import safe_message
from tasks.strict_model import StrictModel

E = TypeVar("E", bound=StrictModel)

Text = Annotated[str, AfterValidator(safe_message)]
"""A text for people: every reader of a job gets it, and it may quote what users sent."""


class EncoderDigests(StrictModel):
    """The SHA-256 of all files that determine the encoders' outputs; null for uncached outputs."""

    text: str | None = None
    vae: str | None = None


class Artifact(StrictModel):
    """A file in the store."""

    name: str
    """The file's name."""

    key: str
    """The file's key in the store."""

    sha256: str
    """The SHA-256 of the file's bytes, in hex."""

    size: int
    """The file's size in bytes."""


class PublishedCopy(StrictModel):
    """A copy of a job's results at one of its destinations, or why there is none."""

    type: Literal["HUB", "BUCKET"]

    target: str
    """The Hub's repository, or the bucket's address."""

    url: str | None = None
    """Where people find the copy; null if it failed."""

    commit: str | None = None
    """The commit on the Hub."""

    error: Text | None = None
    """Why there is no copy. ``training-worker publish JOB`` repeats it."""


class JobAccepted(StrictModel):
    """The job was validated and dispatched."""

    kind: Literal["accepted"] = "accepted"
    queue: str
    """The queue of the job's GPU stages."""
    reason: Text
    """Why the job was routed to this queue."""


class StageStarted(StrictModel):
    """A worker has begun a stage."""

    kind: Literal["stage_started"] = "stage_started"
    stage: str
    attempt: int
    """The number of this start, which is its fencing token."""
    queue: str
    worker: str


class StageFinished(StrictModel):
    """A stage is done."""

    kind: Literal["stage_finished"] = "stage_finished"
    stage: str
    attempt: int
    seconds: float
    summary: Text
    """What the stage did, in a few words."""


class Progress(StrictModel):
    """The progress of a stage."""

    kind: Literal["progress"] = "progress"
    stage: str
    done: int
    total: int
    unit: Literal["entries", "steps", "files", "bytes"]
    per_second: float | None = None
    """Units per second, smoothed."""
    loss: float | None = None
    """The mean loss of the latest step."""
    learning_rate: float | None = None


class DatasetChecked(StrictModel):
    """The dataset was checked; errors end the job."""

    kind: Literal["dataset_checked"] = "dataset_checked"
    images: int
    """The number of usable images."""
    errors: int
    warnings: int
    report_key: str
    """The store key of the report: each problem with its file, and the images of each size."""


class CheckpointSaved(StrictModel):
    """A checkpoint was saved: the run can resume from it. A run's last checkpoint is its end.

    The ``train`` stage records a checkpoint before it removes those beyond max_checkpoints; the
    trainer removes none.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    """The number of weight updates so far."""
    state_key: str
    """The store key of the training state, from which the run resumes exactly."""
    weights: Artifact
    """The main file of the trained weights at this step, in its published form."""
    others: tuple[Artifact, ...] = ()
    """The other files of weights that are published as a folder."""
    epoch: int | None = None
    """The number of passes over the dataset so far; null if the run saves by steps."""
    scheduled: bool = True
    """False if only a stop of the run has saved it. It is not published, unless the job ends with
    it, and the next checkpoint replaces it."""

    @property
    def files(self) -> tuple[Artifact, ...]:
        """All published files; their names begin with the job's name."""
        return (self.weights, *self.others)


class ValidationImages(StrictModel):
    """Images of the validation prompts were generated.

    A run that resumes from an earlier step may report the same step again; the later event counts.
    """

    kind: Literal["validation_images"] = "validation_images"
    step: int
    """The number of weight updates so far."""
    images: tuple[Artifact, ...]
    """The images by prompt, then by number; an image that is not finite is left out."""


class Note(StrictModel):
    """A message to people."""

    kind: Literal["note"] = "note"
    level: Literal["info", "warning"]
    message: Text


class PackStored(StrictModel):
    """A pack of cache entries was stored; for the stage, not for the job's readers."""

    kind: Literal["pack_stored"] = "pack_stored"
    key: str
    """The pack's store key."""
    size: int
    """The pack's size in bytes."""
    entries: tuple[str, ...]
    """The digests of the pack's entries."""


class Heartbeat(StrictModel):
    """The trainer is alive; for its supervisor, not for the job's readers."""

    kind: Literal["heartbeat"] = "heartbeat"


class TrainerStarted(StrictModel):
    """A trainer process got a request; for metrics and traces."""

    kind: Literal["trainer_started"] = "trainer_started"
    how: Literal["cold", "warm", "restart"]
    """A new process, one kept from an earlier request, or a new one after a crash."""


PhaseName = Literal["load", "compile", "encode", "checkpoint", "export", "validate"]


class TrainerPhase(StrictModel):
    """The trainer has finished a phase of its work; for metrics and traces."""

    kind: Literal["trainer_phase"] = "trainer_phase"
    name: PhaseName
    began_at: float
    """When the phase began, in seconds since the epoch by the trainer's clock."""
    seconds: float
    step: int | None = None
    """The number of weight updates so far."""


class CacheDone(StrictModel):
    """The trainer's answer to a ``cache`` request: the requested entries are stored."""

    kind: Literal["cache_done"] = "cache_done"
    encoders: EncoderDigests | None = None
    """The encoders' digests, if the request left them out; no entry is stored then."""


class TrainDone(StrictModel):
    """The trainer's answer to a ``train`` request."""

    kind: Literal["train_done"] = "train_done"
    steps: int
    final_loss: float
    extras: tuple[Artifact, ...] = ()
    """Other files to publish, such as metrics."""
    versions: dict[str, str] = Field(default_factory=dict)
    """The versions of the libraries that computed the result."""
    patches: tuple[str, ...] | None = None
    """The patches that were applied to the engine; null for an engine that needs none."""
    nondeterminism: str | None = None
    """Why a repeated run may differ in its last bits; null if it may not on the same hardware."""
    kernels: dict[str, str] = Field(default_factory=dict)
    """The device, the attention kernels that it tries in turn, and its float32 products."""
    device: str = "cpu"
    """The name of the device."""
    peak_memory_bytes: int | None = None
    """The peak of GPU memory in bytes that PyTorch held after it had loaded the base model, without
    CUDA's context; null on the CPU."""


class CaptionWritten(StrictModel):
    """The caption of an image; for the task, not for the readers of a job."""

    kind: Literal["caption_written"] = "caption_written"
    name: str
    """The image's name in its upload."""
    text: str
    """The caption; empty if the model wrote nothing that can be read."""


class CaptionDone(StrictModel):
    """The trainer's answer to a ``caption`` request: each image had its event."""

    kind: Literal["caption_done"] = "caption_done"


class TrainFailed(StrictModel):
    """The trainer's answer if it cannot continue."""

    kind: Literal["failed"] = "failed"
    code: ErrorCode
    message: str
    file_key: str | None = None
    """The store key of the damaged file; null for other failures."""


class JobEnded(StrictModel):
    """The job has ended."""

    kind: Literal["ended"] = "ended"
    status: Literal["succeeded", "failed", "cancelled"]
    message: Text = ""
    """Why the job did not succeed."""
    code: ErrorCode | None = None


_ForReaders = (
    JobAccepted
    | StageStarted
    | StageFinished
    | Progress
    | DatasetChecked
    | CheckpointSaved
    | ValidationImages
    | Note
    | JobEnded
)
JobEvent = Annotated[_ForReaders, Field(discriminator="kind")]
"""An event in a job's stream, for its readers."""

Event = Annotated[
    _ForReaders
    | PackStored
    | Heartbeat
    | TrainerStarted
    | TrainerPhase
    | CacheDone
    | TrainDone
    | CaptionWritten
    | CaptionDone
    | TrainFailed,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """Return the event of one line of JSON.

    Raises:
        pydantic.ValidationError: The line is not an event.
    """
    return _ADAPTER.validate_json(line)


class EventRouter:
    """Calls the observers and the handler that are registered for an event's type.

    Args:
        default: Handles the events of types without a handler.
    """

    def __init__(self, default: Callable[[Event], None]) -> None:
        self._default = default
        self._handlers: dict[type, Callable[[Any], None]] = {}
        self._observers: dict[type, list[Callable[[Any], None]]] = {}

    def __call__(self, event: Event) -> None:
        """Call the observers of the event's type, then its handler."""
        for observer in self._observers.get(type(event), ()):
            observer(event)
        self._handlers.get(type(event), self._default)(event)

    def handle(self, event_type: type[E], handler: Callable[[E], None]) -> None:
        """Register the handler of a type of events, in place of the default."""
        self._handlers[event_type] = handler

    def observe(self, event_type: type[E], observer: Callable[[E], None]) -> None:
        """Register an observer of a type of events; their handler is called as well."""
        self._observers.setdefault(event_type, []).append(observer)
