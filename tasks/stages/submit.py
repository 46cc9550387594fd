"""Submission of a job: check it, set its id and seed, record and send it."""

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import uuid4

from tasks.contract import job_id_of
from tasks.data.stored_datasets import with_uploads
from tasks.errors import InvalidJobError, Problem, UnknownJobError, UnreadableJobError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.job_store import DispatchOutcome, JobStore
from tasks.store import Store

_SCHEMA_VERSION: int = TrainingJob.model_fields["schema_version"].default


class Submission(NamedTuple):
    """A submitted job.

    Attributes:
        job_id: Its id.
        job: The job with its id and seed set.
        outcome: What happens to it now. A job that was submitted before is SENT again until a
            stage has begun: a second message does no harm, since a stage begins once.
    """

    job_id: str
    job: TrainingJob
    outcome: DispatchOutcome


def submit(
    document: Any,
    state: JobStore,
    result_id: str,
    artifacts: JobArtifacts = NO_ARTIFACTS,
    *,
    open_store: Callable[[], Store] | None = None,
) -> Submission:
    """Check and record a job's document, and dispatch the job or let it wait.

    Args:
        document: The job as it was sent.
        state: Where it is recorded.
        result_id: The id of the Celery result that follows it.
        artifacts: What its record holds for the stages from the start.
        open_store: Returns the store of the saved datasets that it may name; None if it may not.

    Raises:
        InvalidJobError: It cannot run, or another job has its id.
        DoesNotFitJobError: No GPU memory class holds it.
        StoreError: The store with its saved dataset cannot be read.
    """
    return submit_job(parse_job(document), state, result_id, artifacts, open_store=open_store)


def submit_job(
    job: TrainingJob,
    state: JobStore,
    result_id: str,
    artifacts: JobArtifacts = NO_ARTIFACTS,
    *,
    open_store: Callable[[], Store] | None = None,
) -> Submission:
    """Record a checked job, and dispatch it or let it wait; see ``submit``.

    Raises:
        InvalidJobError: Another job has its id, its webhook cannot be signed, or there is no such
            dataset.
        DoesNotFitJobError: No GPU memory class holds it.
        StoreError: The store with its saved dataset cannot be read.
    """
    job = with_uploads(job, open_store, lambda: _recorded(job.id, state))
    if problems := state.webhook_problems(job):
        raise InvalidJobError(problems)
    job_id, resolved = _resolved(job)
    outcome = state.create(job_id, resolved, result_id, artifacts)
    if outcome != DispatchOutcome.EXISTS:
        return Submission(job_id, resolved, outcome)
    head = state.summary(job_id)
    # The same message may arrive twice: its result still follows the job.
    again = DispatchOutcome.WAITING if head.result_id == result_id else DispatchOutcome.EXISTS
    try:
        record = state.get(job_id)
    except UnreadableJobError:
        # Only a newer version can compare the two jobs.
        return Submission(job_id, resolved, again)
    recorded = record.job
    if job.training.seed is None:
        training = resolved.training.model_copy(update={"seed": recorded.training.seed})
        resolved = resolved.model_copy(update={"training": training})
    if resolved != recorded:
        message = f"another job has the id {job_id}; leave the id out or choose another"
        raise InvalidJobError([Problem("id", message)])
    if record.in_tenant_queue or record.stages or record.status.ended:
        return Submission(job_id, recorded, again)
    state.send(record)
    return Submission(job_id, recorded, DispatchOutcome.SENT)


def with_id(document: Any, message_id: str) -> Any:
    """Return the document with an id, derived from its message's if it has none.

    The broker delivers a message again if its worker was lost, and both deliveries are one job.
    """
    if not isinstance(document, dict) or document.get("id") is not None:
        return document
    return {**document, "id": job_id_of(message_id)}


def newer_than_known(document: Any) -> bool:
    """Whether a document is for a newer version of the program."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    return isinstance(version, int) and version > _SCHEMA_VERSION


def _recorded(job_id: str | None, state: JobStore) -> TrainingJob | None:
    """Return the job that was submitted with this id before, if this version can read it."""
    try:
        return None if job_id is None else state.get(job_id).job
    except (UnknownJobError, UnreadableJobError):
        return None


def _resolved(job: TrainingJob) -> tuple[str, TrainingJob]:
    """Return the job's id, and the job with its id and seed set."""
    job_id = job.id or uuid4().hex[:12]
    seed = job.training.seed if job.training.seed is not None else secrets.randbelow(2**31)
    training = job.training.model_copy(update={"seed": seed})
    return job_id, job.model_copy(update={"id": job_id, "training": training})
