"""The ``prepare`` stage: check the base model and every image and caption, store the data set."""

from routing.queues import CPU_QUEUE
from tasks.base_model import check_base_model
from tasks.cache import is_cached
from tasks.data.checks import Report, check_data_set
from tasks.data.ingest import ingest
from tasks.errors import BaseModelError, DataSetError
from tasks.events import Note
from tasks.jobs.pipeline import PipelineConfig
from tasks.records import NEXT_QUEUE
from tasks.stage import StageContext, StageResult
from tasks.store import data_set_key

# Each is an event; a data set with more of them has one systematic cause.
_MOST_NOTES = 20


def check(config: PipelineConfig) -> Report:
    """Check all that later stages need, as seen from this machine.

    Raises:
        BaseModelError: With every fault of the base model.
        DataSetError: With every fault of the data set.
    """
    model_faults = check_base_model(config)
    if model_faults:
        raise BaseModelError(model_faults, "prepare")
    report = check_data_set(config)
    if report.faults:
        raise DataSetError(report.faults, "prepare")
    return report


def prepare(context: StageContext) -> StageResult:
    """Check everything, and store the data set under its digest."""
    report = check(context.record.job.training)
    for warning in report.warnings[:_MOST_NOTES]:
        context.emit(Note(level="warning", message=str(warning)))
    if len(report.warnings) > _MOST_NOTES:
        more = f"{len(report.warnings) - _MOST_NOTES} more warnings; --dry-run shows all"
        context.emit(Note(level="warning", message=more))
    context.check_cancelled()
    data_set = ingest(report, context.runtime.store)
    counts = ", ".join(f"{n} x {size}" for size, n in sorted(report.buckets.items()))
    refs = {"data_set": data_set_key(data_set.digest)}
    if is_cached(context.runtime, context.record.job.training, data_set):
        # No GPU is needed to find that out again.
        refs[NEXT_QUEUE] = CPU_QUEUE
    return StageResult(f"{len(data_set.samples)} pictures: {counts}", refs)
