"""The ``prepare`` stage: check the base model and every image and caption, store the dataset."""

import json
import time
from collections.abc import Callable

from routing.queues import CPU_QUEUE
from tasks.base_models.check import check_base_model
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
from tasks.stages.stage_context import StageContext, StageResult
from tasks.stages.worker_context import TrainerInterrupted
from tasks.state.artifacts import JobArtifacts
from tasks.store import dataset_key, report_key

# Each is an event; a dataset with more of them has one systematic cause.
_MOST_NOTES = 20


def check(
    config: PipelineConfig, sources: Sources, between: Callable[[], object] = lambda: None
) -> Report:
    """Check all that later stages need, as seen from this machine.

    Args:
        config: The job's training.
        sources: Reads its datasets.
        between: Called before each image; what it raises ends the check.

    Raises:
        BaseModelError: With every fault of the base model.
    """
    model_faults = check_base_model(config)
    if model_faults:
        raise BaseModelError(model_faults, "prepare")
    return check_dataset(config, sources, before_each=between)


class _Watch:
    """Stops the stage where it should, and tells of downloads; asks once a second at the most."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._looked_at = 0.0

    def look(self) -> bool:
        """Whether it was time to look.

        Raises:
            TrainerInterrupted: The job is cancelled, or the worker is going away.
        """
        now = time.monotonic()
        if now - self._looked_at < 1:
            return False
        self._looked_at = now
        if self._context.stop_requested():
            raise TrainerInterrupted
        return True

    def downloaded(self, done: int, total: int | None) -> None:
        """Told after each piece of a download."""
        if self.look() and total is not None:
            progress = Progress(stage="prepare", done=done, total=total, unit="bytes")
            self._context.emit(progress)


def access_of(context: StageContext) -> ReadPolicy:
    """What this job may read: less than others where a tenant's key sent it."""
    roots = context.record.artifacts.read_roots
    policy = context.worker.read_policy
    return policy if roots is None else policy.narrowed(roots)


def prepare(context: StageContext) -> StageResult:
    """Check everything, and store the dataset under its digest."""
    worker = context.worker
    watch = _Watch(context)
    sources = Sources(
        access_of(context),
        worker.downloads_dir,
        context.scratch_dir,
        watch.downloaded,
        StoredUploads(worker.store, context.record.job.tenant),
    )
    report = check(context.record.job.training, sources, watch.look)
    key = report_key(context.job_id)
    worker.store.put(key, json.dumps(report.document(), ensure_ascii=False).encode())
    checked = DatasetChecked(
        images=len(report.samples),
        errors=len(report.problems),
        warnings=len(report.warnings),
        report_key=key,
    )
    context.emit(checked, JobArtifacts(report=key))
    if report.problems:
        raise DatasetError(report.problems, "prepare")
    for warning in report.warnings[:_MOST_NOTES]:
        context.emit(Note(level="warning", message=str(warning)))
    if len(report.warnings) > _MOST_NOTES:
        more = f"{len(report.warnings) - _MOST_NOTES} more warnings; --dry-run shows all"
        context.emit(Note(level="warning", message=more))
    context.check_not_cancelled()
    dataset = ingest(report, context.worker.store)
    counts = ", ".join(f"{n} x {size}" for size, n in sorted(report.buckets.items()))
    artifacts = JobArtifacts(dataset=dataset_key(dataset.digest))
    if is_cached(context.worker, context.record.job.training, dataset):
        # No GPU is needed to find that out again.
        artifacts = artifacts.updated(JobArtifacts(cache_queue=CPU_QUEUE))
    images = len(dataset.samples)
    return StageResult(f"{images} images: {counts}", artifacts, work=WorkDone(images))
