"""Copies of a job's results: checked before the dataset is read, made after the manifest exists."""

from collections.abc import Callable
from typing import Any

from tasks.destinations.copying import Copiers
from tasks.destinations.results import CopyError, Results
from tasks.errors import ErrorCode, InvalidDestinationError, JobError
from tasks.events import Artifact, Note, PublishedCopy
from tasks.jobs.job import TrainingJob
from tasks.stages.run_report import tracker_problems
from tasks.stages.stage_context import StageContext
from tasks.stages.worker_context import TrainerInterrupted, WorkerContext
from tasks.state.artifacts import JobArtifacts


def check_destinations(
    job: TrainingJob, worker: WorkerContext, check_stop: Callable[[], object]
) -> None:
    """Check that a job's results can be copied to each destination, as this worker sees it.

    Raises:
        InvalidDestinationError: They cannot; with all problems.
    """
    problems = [*_copiers(worker).problems(job, check_stop), *tracker_problems(job, worker)]
    if problems:
        raise InvalidDestinationError(problems, "prepare")


def copy_results(
    context: StageContext, manifest_key: str, manifest: dict[str, Any]
) -> tuple[PublishedCopy, ...]:
    """Copy published results to the job's destinations; safe to repeat.

    The job succeeds without a copy that its destination refuses: a warning and the result say so.

    Raises:
        JobError: A destination is unavailable, and the stage may be retried.
        SupersededError: A newer start of this stage has taken over.
        CancelledJobError: The job is cancelled.
        TrainerInterrupted: The worker shuts down.
    """
    record, worker = context.record, context.worker
    if not record.job.publish_to:
        return ()
    files = tuple(Artifact.model_validate(file) for file in manifest["files"])
    results = Results(record.id, record.job, files, manifest_key, worker.store, context.scratch_dir)
    made: list[PublishedCopy] = []
    unavailable: list[CopyError] = []
    found = _copiers(worker).copies(
        results, record.artifacts.copies, context.check_not_cancelled, _stop_check(context)
    )
    for copy, error in found:
        made.append(copy)
        if error is not None and error.retryable:
            unavailable.append(error)
        context.emit(_note(copy), JobArtifacts(copies=tuple(made)))
    if unavailable and record.retries < worker.backoff.max_retries:
        raise JobError(str(unavailable[0]), ErrorCode.INVALID_DESTINATION, "publish", True)
    return tuple(made)


def _stop_check(context: StageContext) -> Callable[[], None]:
    """Return what stops a copy when the worker shuts down; its fence looks at the job itself."""

    def check_stop() -> None:
        if context.draining():
            raise TrainerInterrupted

    return check_stop


def _copiers(worker: WorkerContext) -> Copiers:
    return Copiers(worker.secrets, worker.read_policy.hosts, worker.hub_endpoint)


def _note(copy: PublishedCopy) -> Note:
    if copy.error is None:
        return Note(level="info", message=f"the results are copied to {copy.url}")
    message = f"the results are not copied to {copy.target}: {copy.error}"
    return Note(level="warning", message=message)
