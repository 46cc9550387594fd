"""Events of a job, reduced to what its page shows."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from console.pages.formatting import STAGE_NAMES, count, sentence, span
from console.pages.job.loss import LossCurve
from console.views import JobEvent
from tasks.events import (
    CheckpointSaved,
    DatasetChecked,
    JobAccepted,
    JobEnded,
    Note,
    Progress,
    StageFinished,
    StageStarted,
    ValidationImages,
)

_ENDS = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}

MAX_LINES = 300
"""Lines of the log that are kept."""


@dataclass(frozen=True)
class Line:
    """A line of the log."""

    at: datetime
    text: str
    is_warning: bool = False


@dataclass
class EventLog:
    """What the events so far report.

    Attributes:
        position: Id of the last event.
        progress: The latest progress.
        curve: The loss.
        rates: The learning rate.
        lines: The log, oldest first.
        validations: Number of times that samples were made.
        changed: Whether an event arrived since the page was last updated.
    """

    position: str = "0"
    progress: Progress | None = None
    curve: LossCurve = field(default_factory=LossCurve)
    rates: LossCurve = field(default_factory=LossCurve)
    lines: list[Line] = field(default_factory=list)
    validations: int = 0
    changed: bool = False

    def add(self, job_event: JobEvent) -> None:
        """Add an event."""
        self.position, self.changed = job_event.id, True
        event = job_event.event
        if isinstance(event, Progress):
            self.progress = event
            if event.loss is not None:
                self.curve.add(event.done, event.loss)
            if event.learning_rate is not None:
                self.rates.add(event.done, event.learning_rate)
            return
        if isinstance(event, StageStarted):
            self.progress = None
        if isinstance(event, ValidationImages):
            self.validations += 1
        line = _line(job_event)
        if line is not None:
            self.lines.append(line)
            del self.lines[:-MAX_LINES]


def _line(job_event: JobEvent) -> Line | None:
    """Return an event's line of the log; None for an event that has none."""
    text, is_warning = "", False
    match job_event.event:
        case JobAccepted(queue=queue, reason=reason):
            text = f"Accepted for the queue {queue}: {reason}"
        case StageStarted(stage=stage, worker=worker):
            text = f"{STAGE_NAMES.get(stage, stage)}: started on {worker}"
        case StageFinished(stage=stage, seconds=seconds, summary=summary):
            text = f"{STAGE_NAMES.get(stage, stage)}: finished in {span(seconds)}, {summary}"
        case DatasetChecked(images=images, errors=errors, warnings=warnings):
            found = f"{count(errors, 'error')}, {count(warnings, 'warning')}"
            text = f"Images: {count(images, 'valid image')}, {found}"
        case CheckpointSaved(step=step):
            text = f"Saved a checkpoint at step {step:,}"
        case ValidationImages(step=step, images=images):
            text = f"Made {count(len(images), 'sample')} at step {step:,}"
        case Note(level=level, message=message):
            text, is_warning = sentence(message).removesuffix("."), level == "warning"
        case JobEnded(status=status):
            text = f"The job {_ENDS[status]}"
    milliseconds = int(job_event.id.partition("-")[0])
    return (
        Line(datetime.fromtimestamp(milliseconds / 1000, UTC), text, is_warning) if text else None
    )
