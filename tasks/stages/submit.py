"""Submitting a job: check it, settle what it leaves open, record it. Its chain is sent after."""

import secrets
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from tasks.contract import job_id_of
from tasks.errors import InvalidJobError, Problem, UnreadableJobError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.state.job_store import DispatchOutcome, JobStore

_SCHEMA_VERSION: int = TrainingJob.model_fields["schema_version"].default


def resolved(job: TrainingJob) -> tuple[str, TrainingJob]:
    """The job's id, and the job with nothing left to chance: its id and seed set."""
    job_id = job.id or uuid4().hex[:12]
    seed = job.training.seed if job.training.seed is not None else secrets.randbelow(2**31)
    training = job.training.model_copy(update={"seed": seed})
    return job_id, job.model_copy(update={"id": job_id, "training": training})


def with_id(document: Any, message_id: str) -> Any:
    """The document with an id of its message's own, where it has none, so that it is one job.

    A message comes again where its worker was lost.
    """
    if not isinstance(document, dict) or document.get("id") is not None:
        return document
    return {**document, "id": job_id_of(message_id)}


def newer_than_known(document: Any) -> bool:
    """Whether a document says that it is for a newer version of the program."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    return isinstance(version, int) and version > _SCHEMA_VERSION


def admit(
    document: Any, state: JobStore, result_id: str, refs: Mapping[str, str] | None = None
) -> tuple[str, TrainingJob, DispatchOutcome]:
    """Check and record a job, and let it begin or wait.

    Args:
        document: The job as it was sent.
        state: Where it is recorded.
        result_id: The id of the Celery result that follows it.
        refs: What its record tells the stages from the start.

    Returns:
        Its id, the resolved job, and what becomes of it. A job that was submitted before GOES
        until a stage has begun: a chain that is sent twice does no harm, since a stage begins
        once.

    Raises:
        InvalidJobError: It cannot run, or another job has its id.
        DoesNotFitJobError: No GPU memory class holds it.
    """
    job = parse_job(document)
    job_id, ready = resolved(job)
    admission = state.create(job_id, ready, result_id, refs)
    if admission != DispatchOutcome.EXISTS:
        return job_id, ready, admission
    head = state.summary(job_id)
    # The very same message may come twice; the job is to have its result.
    again = DispatchOutcome.WAITING if head.result_id == result_id else DispatchOutcome.EXISTS
    try:
        record = state.get(job_id)
    except UnreadableJobError:
        return job_id, ready, again  # whether it is the same job is not for this version to say
    known = record.job
    if job.training.seed is None:
        ready = ready.model_copy(
            update={"training": ready.training.model_copy(update={"seed": known.training.seed})}
        )
    if ready != known:
        problem = Problem(
            "id", f"{job_id} is the id of another job; leave it out or choose another"
        )
        raise InvalidJobError([problem])
    if record.in_tenant_queue or record.stages or record.status.ended:
        return job_id, known, again
    return job_id, known, DispatchOutcome.SENT
