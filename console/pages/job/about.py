"""What a job's page says beside the run: names, place in the queue, end, time and cost."""

from datetime import UTC, datetime

from console.pages.elements import LocalTime, Tag, fact, panel
from console.pages.formatting import ago, count, queue_name, span
from console.views import JobView
from tasks.events import Progress
from tasks.state.record import JobStatus


class AboutPart:
    """The facts about a job.

    Args:
        view: The job.
        emulated: Queues whose GPUs are emulated.
    """

    def __init__(self, view: JobView, emulated: frozenset[str]) -> None:
        with panel("About"), Tag("div", classes="stack-small"):
            self._notes = Tag("p", "", "pre-line break")
            with Tag("dl", classes="facts"):
                self._name = fact("File name")
                fact("Preset", view.preset or "none")
                fact("Tenant", view.tenant)
                self._priority = fact("Priority")
                fact("Queue", queue_name(view.queue, emulated))
                with fact("Submitted"):
                    LocalTime(view.created_at)
                self._labels = fact("Labels")
                self._start = fact("Start")
                self._end = fact("End")
                self._gpu_time = fact("GPU time")
                self._cost = fact("Cost")

    def show(self, view: JobView, progress: Progress | None) -> None:
        """Show the job as it is now."""
        front = ", moved to the front" if view.moved_to_front_at else ""
        self._priority.update_text(f"{view.priority}{front}")
        self._start.update_text(_start(view))
        self._end.update_text(_end(view, progress))
        self._gpu_time.update_text(_gpu_time(view))
        self._cost.update_text(_cost(view))
        self._name.update_text(view.name)
        self._notes.update_text(view.notes or "")
        labels = (f"{name}={value}" for name, value in view.labels.items())
        self._labels.update_text(", ".join(labels) or "none")


def _start(view: JobView) -> str:
    """Return where a waiting job stands, and when it is expected to start."""
    if view.waiting_reason is None:
        return "started" if view.stages[0].started_at else ""
    parts = []
    if view.jobs_before is not None:
        parts.append(f"{count(view.jobs_before, 'job')} before it")
    if view.estimated_start_at is not None:
        left_s = (view.estimated_start_at - datetime.now(UTC)).total_seconds()
        parts.append(f"in about {span(max(left_s, 1.0))}")
    elif view.estimated_start_unknown is not None:
        parts.append(f"time unknown: {view.estimated_start_unknown}")
    return ", ".join(parts) or view.waiting_reason


def _gpu_time(view: JobView) -> str:
    use = view.gpu_use.seconds
    if not use:
        return "none" if JobStatus(view.status).ended else "none yet"
    classes = ", ".join(f"{span(seconds)} of {name}" for name, seconds in use.items())
    return f"{sum(use.values()) / 3600:.2f} GPU hours ({classes})"


def _cost(view: JobView) -> str:
    """Return what the GPU time cost; the operator may have set no prices."""
    use = view.gpu_use
    if use.cost is None:
        return "no price is set"
    return f"{use.cost:.2f} {use.currency or ''}".rstrip() if use.seconds else "none"


def left_s(view: JobView, progress: Progress | None) -> float | None:
    """Return the seconds to the job's end, or at least to that of its stage; None if unknown."""
    if view.estimated_end_at is not None:
        return max((view.estimated_end_at - datetime.now(UTC)).total_seconds(), 0.0)
    if progress is None or not progress.per_second or progress.stage != view.stage:
        return None
    return max((progress.total - progress.done) / progress.per_second, 0.0)


def _end(view: JobView, progress: Progress | None) -> str:
    if JobStatus(view.status).ended:
        return ago(view.updated_at)
    seconds = left_s(view, progress)
    if seconds is None or (view.estimated_end_at is None and view.waiting_reason is not None):
        return "unknown"
    if view.estimated_end_at is None:
        return f"in {span(seconds)} or later"
    return f"in about {span(seconds)}" if seconds > 1 else "now"


def minutes(seconds: float) -> str:
    """Return a duration that changes once a minute, for the tab's title."""
    return "under 1 min" if seconds < 60 else span(60 * round(seconds / 60))
