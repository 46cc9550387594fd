"""Jobs as a caller sees them: read, listed and changed."""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock

from console.errors import BadRequestError, ForbiddenError
from console.services.shares import AccountCache
from console.services.threads import in_thread
from console.views import ErrorView, JobPage, JobView, ProgressView, ResultView, StageView
from tasks.access.api_keys import Caller
from tasks.client import Client
from tasks.contract import STAGES
from tasks.errors import UnknownJobError
from tasks.eta.estimate import JobProgress, expected_end
from tasks.eta.history import RunHistory
from tasks.events import DatasetChecked, Progress
from tasks.jobs.job import TrainingJob
from tasks.state.job_search import JobFilter, find_jobs
from tasks.state.record import JobRecord
from tasks.store import MANIFEST

# Jobs of a tenant whose read events are remembered; those of others are read again.
_MAX_REMEMBERED = 500
# Run history changes slowly and takes many keys to read.
_HISTORY_TTL_S = 5.0
# Jobs that one search looks at; it returns what it has found by then.
_MAX_SEARCHED = 2000
ID_DIGITS = 12
"""Length of the digest that a tenant's job id ends with."""
_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
_CURSOR = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)~([\w.-]{1,100})", re.ASCII)


@dataclass
class _ReadEvents:
    """Position up to which a job's events were read, and the progress they report."""

    position: str = "0"
    progress: JobProgress = field(default_factory=JobProgress)


class Jobs:
    """Jobs of the fleet; thread-safe.

    ``record`` alone decides which jobs a caller sees. Another tenant's job is answered like an
    unknown one.

    Args:
        client: The fleet's client.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._read: AccountCache[_ReadEvents] = AccountCache(_MAX_REMEMBERED)
        self._lock = Lock()
        self._history: tuple[float, RunHistory] | None = None

    @in_thread
    def get(self, caller: Caller, job_id: str) -> JobView:
        """Return a job.

        Raises:
            UnknownJobError: The caller sees no job of this id.
        """
        return self.view(self.record(caller, job_id), caller)

    @in_thread
    def document(self, caller: Caller, job_id: str) -> TrainingJob:
        """Return a job as it was submitted.

        Raises:
            UnknownJobError: The caller sees no job of this id.
        """
        return self.record(caller, job_id).job

    @in_thread
    def page(
        self,
        caller: Caller,
        wanted: JobFilter,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return a page of the jobs that the caller sees, newest first.

        Args:
            caller: Tenants see their own jobs.
            wanted: Which jobs; operators may name any tenant.
            limit: Maximum number of jobs. A page can be shorter although there are more.
            cursor: ``next_cursor`` of the page before.

        Raises:
            BadRequestError: The cursor is malformed.
            ForbiddenError: The caller may not see this tenant.
        """
        if wanted.tenant is not None and not caller.sees(wanted.tenant):
            raise ForbiddenError("this key lists only its tenant's jobs", "tenant")
        found = find_jobs(
            self._client.state,
            replace(wanted, tenant=caller.tenant or wanted.tenant),
            limit,
            after=None if cursor is None else _position_in(cursor),
            max_searched=_MAX_SEARCHED,
        )
        records = self._client.state.get_all(found.ids)
        return JobPage(
            jobs=tuple(self.view(record, caller) for record in records),
            next_cursor=found.last and f"{found.last[0]!r}~{found.last[1]}",
        )

    @in_thread
    def cancel(self, caller: Caller, job_id: str, *, save: bool = False) -> JobView:
        """Cancel a job.

        Args:
            caller: The caller.
            job_id: The job.
            save: Whether to save a checkpoint first and publish it.

        Raises:
            UnknownJobError: The caller sees no job of this id.
        """
        return self._change(
            caller, job_id, lambda known_id: self._client.cancel(known_id, caller.actor, save=save)
        )

    @in_thread
    def pause(self, caller: Caller, job_id: str) -> JobView:
        """Pause a job.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            InvalidStateError: The job has ended or is being cancelled.
        """
        return self._change(
            caller, job_id, lambda known_id: self._client.pause(known_id, caller.actor)
        )

    @in_thread
    def resume(self, caller: Caller, job_id: str) -> JobView:
        """Resume a paused job.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            InvalidStateError: The job is not paused.
        """
        return self._change(
            caller, job_id, lambda known_id: self._client.resume(known_id, caller.actor)
        )

    @in_thread
    def prioritize(self, caller: Caller, job_id: str, priority: int | None) -> JobView:
        """Change a waiting job's priority among its tenant's jobs; None moves it to the front.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            InvalidStateError: The job has ended, or waits no more.
        """
        return self._change(
            caller,
            job_id,
            lambda known_id: self._client.prioritize(known_id, priority, caller.actor),
        )

    def record(self, caller: Caller, job_id: str) -> JobRecord:
        """Return the record of a job that the caller sees.

        Raises:
            UnknownJobError: The caller sees no job of this id.
        """
        for record in self._client.state.get_all(ids_of(caller, job_id)):
            if caller.sees(record.job.tenant):
                return record
        raise UnknownJobError(job_id)

    def view(self, record: JobRecord, caller: Caller) -> JobView:
        """Return what a caller sees of one of its jobs."""
        training, progress = record.job.training, self._progress(record)
        position = self._client.positions.of(record)
        waiting_reason = self._client.waiting_reason(record, position)
        end = expected_end(record, self.run_history(), datetime.now(UTC), progress)
        return JobView(
            id=record.id,
            name=record.job.name,
            tenant=record.job.tenant,
            type=training.type,
            preset=record.job.preset,
            title=record.title,
            notes=record.notes,
            labels=record.labels,
            metadata=record.job.metadata,
            priority=record.priority,
            moved_to_front_at=record.moved_to_front_at,
            status=record.status,
            stage=record.stage,
            waiting_reason=without_quarantine_reasons(waiting_reason, caller),
            position=position and position.place,
            jobs_before=position and position.jobs_before,
            estimated_start_at=position and position.starts_at,
            estimated_start_unknown=position and position.unknown,
            queue=record.gpu_queue,
            routing_reason=record.reason,
            memory_gib=record.estimate.parts(),
            needed_gib=record.estimate.needed_gib,
            created_at=record.created_at,
            updated_at=record.updated_at,
            progress=_progress_view(record, progress),
            estimated_end_at=end,
            stages=tuple(_stage_view(record, name) for name in STAGES),
            gpu_use=record.gpu_use,
            error=_error_view(record),
            sample=_newest_sample(record),
            result=_result(record, caller),
        )

    def run_history(self) -> RunHistory:
        """Return the history of finished runs, at most a few seconds old."""
        known, now = self._history, time.monotonic()
        if known is None or now - known[0] > _HISTORY_TTL_S:
            known = self._history = (now, self._client.run_history.read())
        return known[1]

    def _change(self, caller: Caller, job_id: str, change: Callable[[str], object]) -> JobView:
        record = self.record(caller, job_id)
        change(record.id)
        return self.view(self._client.state.get(record.id), caller)

    def _progress(self, record: JobRecord) -> JobProgress:
        """Return the progress that a job's events report; none once the job has ended."""
        if record.status.ended:
            return JobProgress()
        with self._lock:
            read = self._read.get(record.id)
            if read is None:
                read = _ReadEvents()
                self._read.add(record.job.tenant, record.id, read)
        last, progress = read.position, read.progress
        for position, event in self._client.state.events(record.id, after=last):
            last = position
            if isinstance(event, DatasetChecked):
                progress = replace(progress, sizes=(event.images,))
            elif isinstance(event, Progress):
                progress = replace(progress, progress=event)
        read.position, read.progress = last, progress
        return progress


def ids_of(caller: Caller, job_id: str) -> list[str]:
    """Return the ids of the jobs that a caller may mean by an id; none if it is malformed."""
    if not _ID.fullmatch(job_id):
        return []
    return [job_id] if caller.tenant is None else [job_id, tenant_job_id(caller.tenant, job_id)]


def tenant_job_id(tenant: str, job_id: str) -> str:
    """Return the id of the job that a tenant calls ``job_id``.

    Ids are unique across the fleet. With its own id unchanged, a tenant could learn of other
    tenants' jobs by trying ids, or be given one of them.
    """
    digest = hashlib.sha256(f"{tenant}/{job_id}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{job_id}-{digest[:ID_DIGITS]}"


def without_quarantine_reasons(waiting_reason: str | None, caller: Caller) -> str | None:
    """Return why something waits; only operators see the reasons of quarantines."""
    if waiting_reason is None or caller.is_operator:
        return waiting_reason
    return waiting_reason.partition(";")[0]


def _position_in(cursor: str) -> tuple[float, str]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise BadRequestError("malformed cursor; use next_cursor of a page of jobs", "cursor")
    return float(match[1]), match[2]


def _progress_view(record: JobRecord, job_progress: JobProgress) -> ProgressView | None:
    progress = job_progress.progress
    if progress is None or progress.stage != record.stage:
        return None
    return ProgressView(**progress.model_dump(exclude={"kind"}))


def _stage_view(record: JobRecord, name: str) -> StageView:
    stage = record.stages.get(name)
    return StageView(
        name=name,
        queue=stage and stage.queue,
        worker=stage and stage.worker,
        started_at=stage and datetime.fromtimestamp(stage.started_at, UTC),
        seconds=stage and stage.seconds,
        summary=stage and stage.summary,
    )


def _error_view(record: JobRecord) -> ErrorView | None:
    if record.error is None:
        return None
    code = str(record.error_code or "")
    return ErrorView(code=code, stage=record.error_stage, message=record.error)


def _newest_sample(record: JobRecord) -> str | None:
    for made in reversed(record.artifacts.validations):
        for image in made.images:
            return image.name
    return None


def _result(record: JobRecord, caller: Caller) -> ResultView | None:
    """Return the result; only operators see where the store is."""
    if record.result is None:
        return None
    hidden = () if caller.is_operator else ("published", "manifest")
    visible = {name: value for name, value in record.result.items() if name not in hidden}
    prefix = (record.artifacts.manifest or "").removesuffix(MANIFEST)
    files = [key.removeprefix(prefix) for key in visible.get("files", ())]
    return ResultView.model_validate({**visible, "files": files})
