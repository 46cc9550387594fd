"""Jobs as they are shown: the record, what its events told, what it waits for, when it ends."""

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from console.errors import BadRequestError
from console.services.job_ids import own_id
from console.views import ErrorView, JobPage, JobView, ProgressView, StageView
from tasks.api_keys import Caller
from tasks.client import Client
from tasks.contract import STAGES
from tasks.errors import UnknownJobError
from tasks.eta.estimate import JobProgress, expected_end
from tasks.eta.history import RunHistory
from tasks.events import DatasetChecked, Progress
from tasks.state.record import JobRecord, JobSummary

# Jobs whose events are not read from the start again.
_MOST_KNOWN = 2000
# What finished runs have taught changes slowly, and takes many keys.
_LEARNED_FOR_S = 5.0
# A search gives what it has found after so many.
_LOOKED_THROUGH = 2000
_AT_A_TIME = 50
_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
_CURSOR = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)~([\w.-]{1,100})", re.ASCII)

Matches = Callable[[JobSummary], bool]


@dataclass
class _Heard:
    """How far a job's events were read, and what they told."""

    position: str = "0"
    told: JobProgress = field(default_factory=JobProgress)


class JobViews:
    """Makes what is shown of jobs; safe to use by several threads.

    Args:
        client: The fleet.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._heard: OrderedDict[str, _Heard] = OrderedDict()
        self._lock = Lock()
        self._learned: tuple[float, RunHistory] | None = None

    def view(self, record: JobRecord, account: Caller) -> JobView:
        """What an account sees of a job that it may see."""
        training, told = record.job.training, self._told(record)
        end = expected_end(record, self.learned(), datetime.now(UTC), told)
        return JobView(
            id=record.id,
            name=record.job.name,
            tenant=record.job.tenant,
            type=training.type,
            preset=record.job.preset,
            priority=record.job.priority,
            status=record.status,
            stage=record.stage,
            waits=for_tenants(self._client.waits_for(record), account),
            queue=record.gpu_queue,
            reason=record.reason,
            memory_gib=record.estimate.parts(),
            needed_gib=record.estimate.needed_gib,
            created=record.created_at,
            updated=record.updated_at,
            progress=_progress(record, told),
            expected_end=end,
            stages=_stages(record),
            error=_error(record),
            result=_result(record, account),
        )

    def record(self, account: Caller, job_id: str) -> JobRecord:
        """A job that the account may see.

        Raises:
            UnknownJobError: There is none of this id, for this account.
        """
        if not _ID.fullmatch(job_id):
            raise UnknownJobError(job_id)
        ids = [job_id]
        if account.tenant is not None:
            ids.append(own_id(account.tenant, job_id))
        for record in self._client.state.get_all(ids):
            if account.sees(record.job.tenant):
                return record
        raise UnknownJobError(job_id)

    def page(
        self,
        account: Caller,
        tenant: str | None,
        matches: Matches,
        limit: int,
        cursor: str | None,
    ) -> JobPage:
        """Some of the jobs, newest first; see ``Service.jobs``.

        Raises:
            BadRequestError: The cursor is none.
        """
        state = self._client.state
        found: list[tuple[float, str]] = []
        looked, last = 0, None if cursor is None else _position_in(cursor)
        # One more than is shown tells whether there are more.
        while len(found) <= limit and looked < _LOOKED_THROUGH:
            entries = state.submitted(tenant, last, max(limit + 1, _AT_A_TIME))
            heads = {it.id: it for it in state.heads([job_id for _, job_id in entries])}
            found += [it for it in entries if it[1] in heads and matches(heads[it[1]])]
            looked += len(entries)
            last = entries[-1] if entries else None
            if last is None:
                break
        shown = found[:limit]
        if len(found) > limit:
            last = shown[-1]
        views = tuple(self.view(it, account) for it in state.get_all([it[1] for it in shown]))
        return JobPage(jobs=views, next=last and f"{last[0]!r}~{last[1]}")

    def learned(self) -> RunHistory:
        """What finished runs have taught, as of a few seconds ago."""
        known, now = self._learned, time.monotonic()
        if known is None or now - known[0] > _LEARNED_FOR_S:
            known = self._learned = (now, self._client.durations.learned())
        return known[1]

    def _told(self, record: JobRecord) -> JobProgress:
        """What a job's events told; of one that is over, nothing that matters any more."""
        if record.status.ended:
            return JobProgress()
        with self._lock:
            heard = self._heard.setdefault(record.id, _Heard())
            self._heard.move_to_end(record.id)
            if len(self._heard) > _MOST_KNOWN:
                self._heard.popitem(last=False)
        last, told = heard.position, heard.told
        for position, event in self._client.state.events(record.id, after=last):
            last = position
            if isinstance(event, DatasetChecked):
                told = replace(told, sizes=(event.images,))
            elif isinstance(event, Progress):
                told = replace(told, progress=event)
        heard.position, heard.told = last, told
        return told


def _position_in(cursor: str) -> tuple[float, str]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise BadRequestError("the cursor is none that a page of jobs gave")
    return float(match[1]), match[2]


def _progress(record: JobRecord, told: JobProgress) -> ProgressView | None:
    progress = told.progress
    if progress is None or progress.stage != record.stage:
        return None
    return ProgressView(**progress.model_dump(exclude={"kind"}))


def _stages(record: JobRecord) -> tuple[StageView, ...]:
    return tuple(_stage(record, name) for name in STAGES)


def _stage(record: JobRecord, name: str) -> StageView:
    begun = record.stages.get(name)
    return StageView(
        name=name,
        queue=begun and begun.queue,
        worker=begun and begun.worker,
        started_at=begun and datetime.fromtimestamp(begun.started_at, UTC),
        seconds=begun and begun.seconds,
        summary=begun and begun.summary,
    )


def _error(record: JobRecord) -> ErrorView | None:
    if record.error is None:
        return None
    code = str(record.error_code or "")
    return ErrorView(code=code, stage=record.error_stage, message=record.error)


def _result(record: JobRecord, account: Caller) -> dict[str, Any] | None:
    """The result without where the operator's store is, which is no tenant's business."""
    if record.result is None:
        return None
    hidden = () if account.tenant is None else ("published", "manifest")
    shown = {name: value for name, value in record.result.items() if name not in hidden}
    prefix = record.refs.get("manifest", "").removesuffix("manifest.json")
    return {**shown, "files": [key.removeprefix(prefix) for key in shown.get("files", ())]}


def for_tenants(waits: str | None, account: Caller) -> str | None:
    """Why something waits, without the reasons of quarantines, which are the operator's."""
    return waits if waits is None or account.tenant is None else waits.partition(";")[0]


def matching(search: str | None, status: str | None) -> Matches:
    """Whether a job is one of those that are looked for.

    Args:
        search: A part of its id or name, in any case.
        status: Its status.
    """
    wanted = (search or "").lower()

    def matches(head: JobSummary) -> bool:
        named = wanted in head.id.lower() or wanted in head.name.lower()
        return named and status in (None, head.status)

    return matches
