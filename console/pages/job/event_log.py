"""What a job's events told its page: folded into the little that is shown."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

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

# Lines of the log that are kept.
MOST_LINES = 300


@dataclass(frozen=True)
class Line:
    """A line of the log."""

    at: datetime
    text: str
    is_warning: bool = False


@dataclass
class EventLog:
    """What was told so far.

    Attributes:
        position: The id of the last event.
        progress: The newest.
        curve: The loss.
        lines: The log, oldest first.
        samples: How often samples were made.
        changed: Whether something was told since that was last asked.
    """

    position: str = "0"
    progress: Progress | None = None
    curve: LossCurve = field(default_factory=LossCurve)
    lines: list[Line] = field(default_factory=list)
    samples: int = 0
    changed: bool = False

    def hear(self, told: JobEvent) -> None:
        """Take an event in."""
        self.position, self.changed = told.id, True
        event = told.event
        if isinstance(event, Progress):
            self.progress = event
            if event.loss is not None:
                self.curve.add(event.done, event.loss)
            return
        if isinstance(event, StageStarted):
            self.progress = None
        if isinstance(event, ValidationImages):
            self.samples += 1
        line = _line(told)
        if line is not None:
            self.lines.append(line)
            del self.lines[:-MOST_LINES]


def _line(told: JobEvent) -> Line | None:
    """An event as a line of the log; None where it is none."""
    text, is_warning = "", False
    match told.event:
        case JobAccepted(queue=queue, reason=reason):
            text = f"accepted for {queue}: {reason}"
        case StageStarted(stage=stage, worker=worker):
            text = f"{stage} began on {worker}"
        case StageFinished(stage=stage, summary=summary):
            text = f"{stage} is done: {summary}"
        case DatasetChecked(images=images, errors=errors, warnings=warnings):
            text = f"{images} images, {errors} errors, {warnings} warnings"
        case CheckpointSaved(step=step):
            text = f"checkpoint at step {step}"
        case ValidationImages(step=step, images=images):
            text = f"{len(images)} samples at step {step}"
        case Note(level=level, message=message):
            text, is_warning = message, level == "warning"
        case JobEnded(status=status):
            text = f"the job is over: {status}"
    milliseconds = int(told.id.partition("-")[0])
    return (
        Line(datetime.fromtimestamp(milliseconds / 1000, UTC), text, is_warning) if text else None
    )
