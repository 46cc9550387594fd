"""What the ``train`` stage reports to experiment trackers, and what ``prepare`` checks for it.

A tracker that fails costs the job its report: one warning says so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.destinations.endpoints import EndpointError, check_endpoint
from tasks.errors import Problem, StoreError
from tasks.events import Artifact, EventRouter, Note, Progress, ValidationImages
from tasks.jobs.job import TrainingJob
from tasks.stages.stage_context import StageContext
from tasks.stages.worker_context import Tracker, TrainerInterrupted, WorkerContext
from tasks.store import Store
from tasks.tracking import TrackerRequest, require_tracker, tracker_requests

logger = logging.getLogger(__name__)

_MAX_IMAGES = 16


def tracker_problems(job: TrainingJob, worker: WorkerContext) -> Iterator[Problem]:
    """Yield what is wrong with the secrets of a job's trackers.

    A name that is not resolved now is no problem: an unavailable tracker ends no job.
    """
    for found in tracker_requests(job, job.id or "", worker.secrets, ""):
        problem = found if isinstance(found, Problem) else _endpoint_problem(found, worker)
        if problem is not None and not problem.retryable:
            yield problem


class RunReport:
    """The trackers of one start.

    Args:
        context: The start.
        trackers: Its trackers.
    """

    def __init__(self, context: StageContext, trackers: list[Tracker]) -> None:
        self._context, self._trackers = context, trackers

    def register(self, router: EventRouter) -> None:
        """Report a trainer's steps and images."""
        if self._trackers:
            router.observe(Progress, self._on_progress)
            router.observe(ValidationImages, self._on_images)

    def check(self) -> None:
        """Warn of trackers that have failed; called twice a second."""
        for tracker in self._trackers:
            warning = tracker.warning()
            if warning is not None:
                self._context.emit(Note(level="warning", message=warning))

    def close(self, end: str) -> None:
        """End the runs."""
        for tracker in self._trackers:
            tracker.close(end)
        if end == "succeeded":
            self.check()

    def _on_progress(self, event: Progress) -> None:
        if event.unit != "steps":
            return
        known = {"train/loss": event.loss, "train/learning_rate": event.learning_rate}
        values = {name: value for name, value in known.items() if value is not None}
        for tracker in self._trackers:
            tracker.send({"step": event.done, "values": values})

    def _on_images(self, event: ValidationImages) -> None:
        for number, tracker in enumerate(self._trackers):
            for image in event.images[:_MAX_IMAGES]:
                folder = self._context.scratch_dir / f"tracker-{number}"
                download = _Download(self._context.worker.store, image, folder)
                tracker.send_image(event.step, _caption(image), download)


@contextmanager
def reporting(context: StageContext) -> Iterator[RunReport]:
    """Report a start's run until the block ends.

    Raises:
        NotInstalledError: This worker lacks a tracker's library.
    """
    report = RunReport(context, list(_opened(context)))
    end = "failed"
    try:
        yield report
        end = "succeeded"
    except TrainerInterrupted:
        end = "interrupted"
        raise
    finally:
        report.close(end)


def _opened(context: StageContext) -> Iterator[Tracker]:
    worker, job = context.worker, context.record.job
    folder = str(context.scratch_dir / "tracker")
    requests = list(tracker_requests(job, context.job_id, worker.secrets, folder))
    for found in requests:
        if isinstance(found, TrackerRequest):
            require_tracker(found)
    for found in requests:
        problem = found if isinstance(found, Problem) else _endpoint_problem(found, worker)
        if problem is not None:
            # ``prepare`` found none: this worker lacks the secret, or a name is not resolved now.
            message = f"the run is not reported: {problem.message}"
            context.emit(Note(level="warning", message=message))
        elif isinstance(found, TrackerRequest):
            context.scratch_dir.mkdir(parents=True, exist_ok=True)
            tracker = worker.services.open_tracker(found)
            if tracker is not None:
                yield tracker


def _endpoint_problem(request: TrackerRequest, worker: WorkerContext) -> Problem | None:
    try:
        check_endpoint(request.secret.address, worker.read_policy.hosts)
    except EndpointError as error:
        message = f"the address in the secret {request.secret.tracker}: {error}"
        return Problem("training.report_to", message, retryable=error.retryable)
    return None


class _Download:
    """Downloads an image for a tracker, in the tracker's thread.

    Args:
        store: The store.
        image: The image.
        folder: The folder for its file.
    """

    def __init__(self, store: Store, image: Artifact, folder: Path) -> None:
        self._store, self._image, self._folder = store, image, folder

    def __call__(self) -> str | None:
        """Return the file; None if the store fails."""
        path = self._folder / self._image.name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store.download(self._image.key, path)
        except (StoreError, OSError) as error:
            logger.warning("an image is not reported: %s", error)
            return None
        return str(path)


def _caption(image: Artifact) -> str:
    """Return the prompt's number and the image's: the same at each step."""
    return "-".join(Path(image.name).stem.split("-")[-2:])
