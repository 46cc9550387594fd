"""Records of jobs with results, archived in the store: a broker that is lost takes none with it.

``publish`` archives a job's record, and ``training-worker recover`` restores those whose records
the broker no longer has.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tasks.contract import position_order
from tasks.errors import StoreError, UnreadableJobError
from tasks.events import Event, JobEnded
from tasks.state.ended_jobs import EndedJobs
from tasks.state.job_reader import JobReader, parse_stored_event
from tasks.state.record import JobRecord, parse_record
from tasks.store import ARCHIVE, ObjectInfo, Store, archived_record_key
from tasks.strict_model import SAFE_NAME, NonNegativeFloat, StrictModel
from tasks.urls import redact_urls

# What belongs to a start or to the broker's own bookkeeping; of a webhook's address, the job's own
# document has what may be kept.
_VOLATILE = {
    "webhook",
    *("change_id", "change_reply", "delivery_tag", "starts", "unstarted", "deferred_by"),
    *("front_at", "gpu_start", "alive_at", "copied_until"),
    *("renewed_at", "newest_event", "event_bytes", "due_at", "tenant_queue", "waiting_message"),
}
# Far above a job's 10,000 events.
_MAX_BYTES = 64 * 2**20
# Far above a record's fields; one call of Redis takes all of them.
_MAX_FIELDS = 1000
_PAGE = 100
_MAX_LISTED = 50
_Position = Annotated[str, Field(pattern=r"^[0-9]{1,16}-[0-9]{1,16}$")]


class ArchivedRecord(StrictModel):
    """The record of a job that has ended, as the store keeps it."""

    archive_version: Literal[1] = 1

    job_id: Annotated[str, Field(pattern=SAFE_NAME)]

    ended_at: NonNegativeFloat
    """Seconds since 1970."""

    fields: Annotated[dict[str, str], Field(max_length=_MAX_FIELDS)]
    """The hash of the record; addresses without queries and credentials."""

    events: tuple[tuple[_Position, str], ...]
    """The job's events, each with its position, oldest first."""


def archive_record(
    store: Store,
    jobs: JobReader,
    job_id: str,
    changes: Mapping[str, str] | None = None,
    last_events: Sequence[Event] = (),
) -> None:
    """Archive a job's record; safe to repeat.

    Args:
        store: The store.
        jobs: Reads the record.
        job_id: The job.
        changes: Fields of the record that its end is about to change.
        last_events: Events that its end is about to append.

    Raises:
        UnknownJobError: There is no such job.
        StoreError: The store failed.
    """
    fields = {**jobs.fields(job_id), **(changes or {})}
    kept = {
        name: _redacted(value)
        for name, value in fields.items()
        if name not in _VOLATILE and not name.startswith("progress:")
    }
    events = [(position, event.model_dump_json()) for position, event in jobs.events(job_id)]
    ended_at = jobs.now() if last_events else float(kept["updated_at"])
    newest_ms = position_order(events[-1][0])[0] if events else 0
    ended_ms = max(int(ended_at * 1000), newest_ms + 1)
    events += [
        (f"{ended_ms}-{number}", event.model_dump_json())
        for number, event in enumerate(last_events)
    ]
    kept["updated_at"] = f"{ended_at:.6f}"
    record = ArchivedRecord(job_id=job_id, ended_at=ended_at, fields=kept, events=tuple(events))
    store.put(archived_record_key(job_id), record.model_dump_json().encode())


@dataclass
class RecoveryReport:
    """What a recovery found.

    Attributes:
        restored: The ids of jobs whose records were restored, the first ones of them.
        existing: The number of jobs that have a record.
        expired: The number of jobs that ended longer ago than records are kept.
        unreadable: The first jobs whose archived record cannot be used, each with the reason.
    """

    restored: list[str] = field(default_factory=list)
    restored_count: int = 0
    existing: int = 0
    expired: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    unreadable_count: int = 0

    def add_restored(self, job_id: str) -> None:
        """Count a job, and list it if it is among the first."""
        self.restored_count += 1
        if len(self.restored) < _MAX_LISTED:
            self.restored.append(job_id)

    def add_unreadable(self, job_id: str, reason: str) -> None:
        """Count a job, and list it if it is among the first."""
        self.unreadable_count += 1
        if len(self.unreadable) < _MAX_LISTED:
            self.unreadable[job_id] = reason


@dataclass(frozen=True)
class Recovery:
    """Restores the records of jobs from the store; never changes one that exists.

    Attributes:
        store: The store.
        jobs: Reads records.
        ended: Writes records.
        ttl: How long a job is kept after its end.
        on_restored: Called with each restored record.
        per_second: The most records that are read in a second.
        is_dry: Whether nothing is written.
    """

    store: Store
    jobs: JobReader
    ended: EndedJobs
    ttl: timedelta
    on_restored: Callable[[JobRecord], object] = lambda record: None
    per_second: float = 50.0
    is_dry: bool = False

    def run(self) -> RecoveryReport:
        """Restore what the broker lacks, a page of the store's listing at a time.

        Raises:
            StoreError: The store cannot be listed.
        """
        report = RecoveryReport()
        listed = self.store.iterate(ARCHIVE)
        while page := list(islice(listed, _PAGE)):
            # Any other object below the prefix archives no job, whatever it is named.
            found = {
                job_id: info
                for info in page
                if info.key == archived_record_key(job_id := _job_id(info.key))
            }
            existing = self.jobs.existing(found)
            report.existing += len(existing)
            for job_id, info in found.items():
                if job_id not in existing:
                    self._recover(job_id, info, report)
        return report

    def _recover(self, job_id: str, info: ObjectInfo, report: RecoveryReport) -> None:
        # An object is written at its job's end or later.
        if self._rest_s(info.modified.timestamp()) <= 0:
            report.expired += 1
            return
        time.sleep(1 / self.per_second)
        try:
            archived, record = self._read(job_id, info)
        except (ValueError, StoreError, UnreadableJobError) as error:
            report.add_unreadable(job_id, str(error))
            return
        rest_s = self._rest_s(archived.ended_at)
        if rest_s <= 0:
            report.expired += 1
        elif self.is_dry:
            report.add_restored(job_id)
        elif self.ended.restore(job_id, archived.fields, archived.events, rest_s):
            self.on_restored(record)
            report.add_restored(job_id)
        else:
            report.existing += 1

    def _rest_s(self, ended_at: float) -> int:
        """Return for how many seconds from now a record is kept, by the broker's clock."""
        return int(min(ended_at - self.jobs.now(), 0) + self.ttl.total_seconds())

    def _read(self, job_id: str, info: ObjectInfo) -> tuple[ArchivedRecord, JobRecord]:
        """Return an archived record, and what this version reads of it.

        Raises:
            ValueError: It is no archived record of this job.
            StoreError: The store failed.
            UnreadableJobError: A newer version wrote it, or it is malformed.
        """
        if info.size > _MAX_BYTES:
            raise ValueError(f"has {info.size:,} bytes; the maximum is {_MAX_BYTES:,}")
        try:
            archived = ArchivedRecord.model_validate_json(self.store.get(info.key))
        except ValidationError as error:
            count = error.error_count()
            raise ValueError(f"is no archived record: {count} fields are wrong") from error
        record = parse_record(job_id, archived.fields)
        if archived.job_id != job_id or not record.status.ended:
            raise ValueError("is the record of another job, or of one that has not ended")
        if archived.fields.get("tenant") != record.tenant:
            raise ValueError("is listed for another tenant")
        _check_events(archived.events)
        manifest = record.artifacts.manifest
        if manifest is None or not self.store.exists(manifest):
            raise ValueError(f"names results that the store no longer has: {manifest}")
        return archived, record


def _check_events(events: Sequence[tuple[str, str]]) -> None:
    """Check what a script relies on: it cannot undo what it wrote before an error.

    Raises:
        ValueError: An event cannot be appended, or the last one is not the job's end.
    """
    try:
        parsed = [parse_stored_event(text) for _, text in events]
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError("has an event that is none") from error
    if not parsed or not isinstance(parsed[-1], JobEnded):
        raise ValueError("has no event of the job's end")
    order = [position_order(position) for position, _ in events]
    if any(later <= earlier for earlier, later in pairwise([(0, 0), *order])):
        raise ValueError("has events that are not in order")


def _job_id(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")


def _redacted(value: str) -> str:
    """Return a field without queries and credentials of addresses in its JSON."""
    if "://" not in value:
        return value
    try:
        parsed: Any = json.loads(value)
    except ValueError:
        return str(redact_urls(value))
    return json.dumps(redact_urls(parsed))


def listed(report: RecoveryReport) -> Iterator[str]:
    """Yield a report's lines for people."""
    yield f"{report.restored_count:,} restored: {' '.join(report.restored)}".rstrip(": ")
    yield f"{report.existing:,} have a record, {report.expired:,} have expired"
    for job_id, reason in report.unreadable.items():
        yield f"not restored: job {job_id}: {reason}"
    if report.unreadable_count > len(report.unreadable):
        yield f"{report.unreadable_count - len(report.unreadable):,} more are not restored"
