"""The ``prepare`` stage: check the base model and every image and caption; store the dataset."""

import json
import time
from collections.abc import Callable
from threading import Lock

from routing.queues import CPU_QUEUE
from tasks.base_models.check import check_base_model
from tasks.base_models.noise_schedule import noise_notes
from tasks.data.ingest import ingest
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.uploads import StoredUploads
from tasks.data.validation import Report, check_dataset
from tasks.errors import BaseModelError, DatasetError
from tasks.eta.history import WorkDone
from tasks.events import DatasetChecked, Note, Progress
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.cache import is_cached
from tasks.stages.copies import check_destinations
from tasks.stages.stage_context import StageContext, StageResult
from tasks.stages.worker_context import TrainerInterrupted
from tasks.state.artifacts import JobArtifacts
from tasks.store import Store, dataset_key, report_key

# Each is an event; a dataset with more warnings has one systematic cause.
_MAX_NOTES = 20
_STOP_CHECK_EVERY_S = 0.5


def prepare(context: StageContext) -> StageResult:
    """Check everything, and store the dataset under its digest."""
    worker, config = context.worker, context.record.job.training
    monitor = _Monitor(context)
    sources = Sources(
        read_policy_of(context),
        worker.downloads_dir,
        context.scratch_dir,
        monitor.on_download,
        StoredUploads(worker.store, context.record.job.tenant),
        monitor.check_stop,
    )
    check_destinations(context.record.job, worker, monitor.check_stop)
    report = check(config, sources, monitor.check_stop, worker.store)
    _publish_report(context, report)
    context.check_not_cancelled()
    dataset = ingest(report, worker.store, check_stop=monitor.check_stop)
    artifacts = JobArtifacts(dataset=dataset_key(dataset.digest), images=len(dataset.samples))
    if is_cached(worker, config, dataset):
        # The cache stage has nothing to compute: it needs no GPU.
        artifacts = artifacts.updated(JobArtifacts(cache_queue=CPU_QUEUE))
    counts = ", ".join(f"{count} x {size}" for size, count in sorted(report.buckets.items()))
    images = len(dataset.samples)
    noun = "image" if images == 1 else "images"
    return StageResult(f"{images} {noun}: {counts}", artifacts, work=WorkDone(images))


def check(
    config: PipelineConfig,
    sources: Sources,
    check_stop: Callable[[], object] = lambda: None,
    store: Store | None = None,
) -> Report:
    """Check everything that later stages need, as far as this machine can see it.

    Args:
        config: The job's training config.
        sources: Reads the job's datasets.
        check_stop: Called a few times a second; an error that it raises ends the check.
        store: See ``check_dataset``.

    Raises:
        BaseModelError: The base model has problems; it lists them all.
    """
    problems = check_base_model(config)
    if problems:
        raise BaseModelError(problems, "prepare")
    report = check_dataset(config, sources, check_stop=check_stop, store=store)
    report.warnings[:0] = noise_notes(config)
    return report


def read_policy_of(context: StageContext) -> ReadPolicy:
    """Return what this job may read: for a tenant's key, less than its worker may."""
    roots = context.record.artifacts.read_roots
    policy = context.worker.read_policy
    return policy if roots is None else policy.narrowed(roots)


class _Monitor:
    """Stops the stage on request, and reports downloads, once a second at most.

    Downloads call it from several threads.
    """

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._checked_s = 0.0
        self._is_stopped = False
        self._lock = Lock()

    def check_stop(self) -> None:
        """Check whether the stage should stop.

        Raises:
            TrainerInterrupted: A user stops the job, or the worker shuts down.
        """
        with self._lock:
            self._is_due()

    def on_download(self, done: int, total: int | None) -> None:
        """Report a download; called after each of its chunks."""
        with self._lock:
            if self._is_due() and total is not None:
                progress = Progress(stage="prepare", done=done, total=total, unit="bytes")
                self._context.emit(progress)

    def _is_due(self) -> bool:
        now = time.monotonic()
        is_due = now - self._checked_s >= _STOP_CHECK_EVERY_S
        if is_due:
            self._checked_s = now
            self._is_stopped = self._is_stopped or self._context.stop_requested()
        # Every thread ends, not only the first one that asks.
        if self._is_stopped:
            raise TrainerInterrupted
        return is_due


def _publish_report(context: StageContext, report: Report) -> None:
    """Store and report what was found in the dataset.

    Raises:
        DatasetError: The dataset cannot be trained on.
    """
    key = report_key(context.job_id)
    document = json.dumps(report.document(), ensure_ascii=False)
    context.worker.store.put(key, document.encode())
    checked = DatasetChecked(
        images=len(report.samples),
        errors=len(report.problems),
        warnings=len(report.warnings),
        report_key=key,
    )
    context.emit(checked, JobArtifacts(report=key))
    if report.problems:
        raise DatasetError(report.problems, "prepare")
    for warning in report.warnings[:_MAX_NOTES]:
        context.emit(Note(level="warning", message=str(warning)))
    if len(report.warnings) > _MAX_NOTES:
        more = f"{len(report.warnings) - _MAX_NOTES} more warnings; --dry-run lists all of them"
        context.emit(Note(level="warning", message=more))
