"""How a start of a stage ends: the values that ``run_stage`` returns.

``tasks/stages/celery_tasks.py`` alone turns them into acknowledgements, retries and results.
"""

from dataclasses import dataclass
from typing import Any

from tasks.errors import JobError


@dataclass(frozen=True)
class Done:
    """The stage is done.

    Attributes:
        answer: The Celery task's result; it holds references only.
        next_queue: Where the next stage's message was sent; None if no stage may start now.
    """

    answer: dict[str, Any]
    next_queue: str | None


@dataclass(frozen=True)
class Requeued:
    """The worker cannot continue: its message goes back, and the next start resumes."""

    reason: str


@dataclass(frozen=True)
class Rerouted:
    """Another class of workers must do the stage: its message goes to another queue."""

    queue: str
    reason: str


@dataclass(frozen=True)
class RetriedAfterDelay:
    """A transient error: the reconciler sends the stage again when its delay is over."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The stage failed, and the job with it."""

    error: JobError


@dataclass(frozen=True)
class Cancelled:
    """The job was cancelled, and has ended.

    Attributes:
        error: The job's error.
        actor: Who cancelled it, if the audit log has it.
    """

    error: JobError
    actor: str | None = None


@dataclass(frozen=True)
class Paused:
    """The job was paused while the stage ran: resuming it sends another message.

    Attributes:
        actor: Who paused it, if the audit log has it.
    """

    actor: str | None


@dataclass(frozen=True)
class Discarded:
    """The message needs no work: a duplicate, or one of a job that has ended or is paused."""

    reason: str


@dataclass(frozen=True)
class DeferredToNewerWorker:
    """The job is for workers of a newer version; the broker sends it again after a delay."""

    reason: str


StageOutcome = (
    Done
    | Requeued
    | Rerouted
    | RetriedAfterDelay
    | Failed
    | Cancelled
    | Paused
    | Discarded
    | DeferredToNewerWorker
)


def described(outcome: StageOutcome) -> str:
    """Return an outcome in words, for logs."""
    match outcome:
        case Done(_, next_queue):
            return f"done, next in {next_queue}" if next_queue else "done"
        case Failed(error):
            return f"failed: {error}"
        case Cancelled(_, actor) | Paused(actor):
            name = type(outcome).__name__.lower()
            return f"{name} by {actor}" if actor else name
        case Rerouted(queue, reason):
            return f"rerouted to {queue}: {reason}"
        case RetriedAfterDelay(reason):
            return f"retried: {reason}"
        case DeferredToNewerWorker(reason):
            return f"deferred: {reason}"
        case Requeued(reason) | Discarded(reason):
            return f"{type(outcome).__name__.lower()}: {reason}"
