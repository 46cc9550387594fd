"""What is told of a job while it runs: typed, one JSON object each.

The same models travel from the trainer over its pipe (a line each) and to readers over the job's
stream in Redis.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from tasks.errors import ErrorCode
from tasks.strict_model import StrictModel


class EncoderDigests(StrictModel):
    """The SHA-256 of all files that decide what the encoders put out; null where not cached."""

    text: str | None = None
    vae: str | None = None


class Artifact(StrictModel):
    """A file in the store."""

    name: str
    """Its file name."""

    key: str
    """Its key in the store."""

    sha256: str
    """The digest of its bytes, in hex."""

    size: int
    """Its length in bytes."""


class JobAccepted(StrictModel):
    """The job was checked and its chain dispatched."""

    kind: Literal["accepted"] = "accepted"
    queue: str
    """The queue of its GPU stages."""
    reason: str
    """Why that queue."""


class StageStarted(StrictModel):
    """A worker began a stage."""

    kind: Literal["stage_started"] = "stage_started"
    stage: str
    attempt: int
    """The fencing token this start holds."""
    queue: str
    worker: str


class StageFinished(StrictModel):
    """A stage is done."""

    kind: Literal["stage_finished"] = "stage_finished"
    stage: str
    attempt: int
    seconds: float
    summary: str
    """What it did, in a few words."""


class Progress(StrictModel):
    """How far a stage is."""

    kind: Literal["progress"] = "progress"
    stage: str
    done: int
    total: int
    unit: Literal["entries", "steps", "files", "bytes"]
    per_second: float | None = None
    """Units done per second, smoothed."""
    loss: float | None = None
    """The mean loss of this step."""
    learning_rate: float | None = None


class DatasetChecked(StrictModel):
    """The dataset was checked; errors end the job."""

    kind: Literal["dataset_checked"] = "dataset_checked"
    images: int
    """Good ones."""
    errors: int
    warnings: int
    report_key: str
    """The store key of the report: every finding with its file, and the images of each size."""


class CheckpointSaved(StrictModel):
    """The run can go on from here; the last one of a run is its end.

    The ``train`` stage records it and only then removes those beyond max_checkpoints: the trainer
    removes none.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    """Weight updates made."""
    state_key: str
    """The store key of the exact training state."""
    weights: Artifact
    """What was trained, as of this step, in its published form; the file to name first."""
    others: tuple[Artifact, ...] = ()
    """The rest of it, where it is a folder."""

    @property
    def files(self) -> tuple[Artifact, ...]:
        """All published files; their names start with the job's name."""
        return (self.weights, *self.others)


class ValidationImages(StrictModel):
    """Images of the validation prompts were made.

    A run that goes on from an earlier step tells of the same step again; the later one holds.
    """

    kind: Literal["validation_images"] = "validation_images"
    step: int
    """Weight updates made."""
    images: tuple[Artifact, ...]
    """By prompt, then by number; one that came out as no image is left out."""


class Note(StrictModel):
    """Something a person should know."""

    kind: Literal["note"] = "note"
    level: Literal["info", "warning"]
    message: str


class PackStored(StrictModel):
    """Cache entries were made and are in the store; for the stage, not for the job's readers."""

    kind: Literal["pack_stored"] = "pack_stored"
    key: str
    """The store key of their pack."""
    size: int
    """The pack's, in bytes."""
    entries: tuple[str, ...]
    """The digests of the entries in it."""


class Heartbeat(StrictModel):
    """The trainer is at work; for its supervisor, not for the job's readers."""

    kind: Literal["heartbeat"] = "heartbeat"


class TrainerStarted(StrictModel):
    """A trainer process was given a request; for those who watch the fleet."""

    kind: Literal["trainer_started"] = "trainer_started"
    how: Literal["cold", "warm", "restart"]
    """A new process, a kept one, or a new one after a crash."""


PhaseName = Literal["load", "encode", "checkpoint", "export", "validate"]


class TrainerPhase(StrictModel):
    """The trainer has done a part of its work; for those who watch the fleet."""

    kind: Literal["trainer_phase"] = "trainer_phase"
    name: PhaseName
    began_at: float
    """Seconds since the epoch, by the trainer's clock."""
    seconds: float
    step: int | None = None
    """Weight updates made."""


class CacheDone(StrictModel):
    """The trainer's answer to a ``cache`` request: all it was asked for is stored."""

    kind: Literal["cache_done"] = "cache_done"
    encoders: EncoderDigests | None = None
    """Where the request did not name them: the encoders' digests, and nothing is stored."""


class TrainDone(StrictModel):
    """The trainer's answer to a ``train`` request."""

    kind: Literal["train_done"] = "train_done"
    steps: int
    final_loss: float
    extras: tuple[Artifact, ...] = ()
    """Other files to publish: metrics."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Library to version, of those that computed the result."""
    patches: tuple[str, ...] | None = None
    """The patches applied to the engine; null if it needs none."""
    device: str = "cpu"
    """The device's name."""
    peak_memory_bytes: int | None = None
    """The most GPU memory that PyTorch held once the base model was loaded, without CUDA's context;
    null on the CPU."""


class TrainFailed(StrictModel):
    """The trainer's last word when it cannot go on."""

    kind: Literal["failed"] = "failed"
    code: ErrorCode
    message: str
    file_key: str | None = None
    """The store key of the damaged file; null for other failures."""


class JobEnded(StrictModel):
    """The job is over."""

    kind: Literal["ended"] = "ended"
    status: Literal["succeeded", "failed", "cancelled"]
    message: str = ""
    """Why, where it did not succeed."""
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
"""What a job's readers are told."""

Event = Annotated[
    _ForReaders
    | PackStored
    | Heartbeat
    | TrainerStarted
    | TrainerPhase
    | CacheDone
    | TrainDone
    | TrainFailed,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """The event that one line of JSON holds.

    Raises:
        pydantic.ValidationError: The line is no event.
    """
    return _ADAPTER.validate_json(line)
