"""Follow a job to its end: live on a terminal, line by line elsewhere, or as JSON."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from statistics import median
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tasks import events
from tasks.client import Client
from tasks.errors import ErrorCode, JobError
from tasks.escaping import escaped
from tasks.eta.history import p90
from tasks.state.record import JobRecord, JobStatus
from worker.cli.reports.job_report import show_published
from worker.cli.reports.job_tables import stage_table
from worker.cli.reports.output import counted, duration_text, print_json, stdout

_BLOCK_MS = 1000
# Short waits are normal and need no explanation; each explanation costs the broker a few reads.
_EXPLAIN_AFTER_S = 3.0
_EXPLAIN_EVERY_S = 15.0


def follow_and_report(client: Client, job_id: str, *, json: bool) -> None:
    """Follow a job, then print its result.

    Raises:
        UnknownJobError: There is no such job.
        JobError: The job failed or was cancelled; its own error.
    """
    record = follow(client, job_id, as_json=json)
    if json:
        print_json({"job_id": job_id, "status": record.status, **(record.result or {})})
    else:
        stdout.print(stage_table(record))
        show_published(record)


def follow(client: Client, job_id: str, *, as_json: bool) -> JobRecord:
    """Print a job's events until it ends.

    Returns:
        The job's record, with its result: it succeeded, or was cancelled and saved.

    Raises:
        UnknownJobError: There is no such job.
        JobError: The job failed or was cancelled; its own error.
    """
    if as_json:
        for event in events_of(client, job_id):
            print_json(event.model_dump(mode="json"))
    else:
        with _Display() as display:
            for event in events_of(client, job_id):
                display.show(event)
    return ended_record(client, job_id)


def ended_record(client: Client, job_id: str) -> JobRecord:
    """Return the record of a job that has ended, with its result.

    Raises:
        UnknownJobError: There is no such job.
        JobError: The job failed or was cancelled; its own error.
    """
    record = client.state.get(job_id)
    if record.error_code is not None:
        raise JobError(record.error or "", record.error_code, record.error_stage or "")
    if record.result is None:
        raise JobError(f"job {job_id} was cancelled", ErrorCode.CANCELLED, record.stage)
    return record


def waiting_note(client: Client, record: JobRecord) -> events.Note | None:
    """Explain why no worker takes a job, or else where it stands, or how long others waited."""
    if record.pending_queue is None:
        return None
    reason = client.unserved_reason(record.pending_queue)
    if reason is not None:
        return events.Note(level="warning", message=f"{record.stage} waits: {reason}")
    position = client.positions.of(record)
    if position is not None and (position.starts_at or record.in_tenant_queue):
        return events.Note(level="info", message=client.waiting_reason(record, position) or "")
    waits = client.run_history.read().waits.get(record.pending_queue)
    if waits is None or record.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
        return None
    message = (
        f"{record.stage} waits in {record.pending_queue} for a free worker; the last "
        f"{counted(len(waits), 'wait')} there: median {duration_text(median(waits))}, "
        f"90 % within {duration_text(p90(waits))}"
    )
    return events.Note(level="info", message=message)


def events_of(client: Client, job_id: str) -> Iterator[events.Event]:
    """Yield all events of a job until it ends, and a note whenever it waits for long.

    Raises:
        UnknownJobError: There is no such job.
    """
    client.state.get(job_id)
    position, explained, explain_at = "0", "", time.monotonic() + _EXPLAIN_AFTER_S
    while True:
        batch = list(client.state.events(job_id, after=position, block_ms=_BLOCK_MS))
        for _, event in batch:
            yield event
        # A replayed job has an earlier end among its events.
        if batch and isinstance(batch[-1][1], events.JobEnded):
            return
        if batch:
            position = batch[-1][0]
            explained, explain_at = "", time.monotonic() + _EXPLAIN_AFTER_S
        elif time.monotonic() >= explain_at:
            explain_at = time.monotonic() + _EXPLAIN_EVERY_S
            record = client.state.get(job_id)
            if record.status.ended:
                return
            note = waiting_note(client, record)
            if note is not None and note.message != explained:
                explained = note.message
                yield note


class _Display(AbstractContextManager["_Display"]):
    """One line per event, and a progress bar for the stage that runs."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("  {task.description:<8}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=stdout,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._printed_tenth = -1
        self._last_warning = ""

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.JobAccepted():
                self._line(f"accepted for {event.queue}: {event.reason}")
            case events.StageStarted():
                self._drop_bar()
                self._line(f"{event.stage:<8} on {event.worker} ({event.queue})")
            case events.StageFinished():
                self._drop_bar()
                self._line(f"{event.stage:<8} done in {event.seconds:.1f} s: {event.summary}")
            case events.Progress():
                self._advance(event)
            case events.DatasetChecked():
                counts = (
                    (event.images, "image"),
                    (event.errors, "error"),
                    (event.warnings, "warning"),
                )
                self._line(", ".join(counted(number, noun) for number, noun in counts))
            case events.CheckpointSaved():
                self._line(f"checkpoint at step {event.step}")
            case events.ValidationImages():
                images = counted(len(event.images), "validation image")
                self._line(f"{images} at step {event.step}")
            case events.Note(level="warning"):
                self._warn(event.message)
            case events.Note():
                self._line(event.message, "dim")
            case _:
                pass

    def _warn(self, message: str) -> None:
        """Print a warning; of one that differs from the last only in its last part, that part.

        A retry repeats its error, and ends with the number of the try and the delay.
        """
        first, _, last = message.rpartition("; ")
        is_repeated = bool(first) and first == self._last_warning
        self._last_warning = first
        self._line(f"  the same error; {last}" if is_repeated else message, "yellow")

    def _line(self, text: str, style: str | None = None) -> None:
        self._progress.console.print(f"  {escaped(text)}", style=style)

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar, self._printed_tenth = None, -1

    def _advance(self, event: events.Progress) -> None:
        """Move the bar; off a terminal, print a line for each tenth of the work."""
        details: str = event.unit
        if event.loss is not None:
            details += f"  loss {event.loss:.4f}"
        if event.per_second is not None:
            details += f"  {event.per_second:.2f}/s"
        if self._bar is None:
            self._bar = self._progress.add_task(event.stage, total=event.total, details=details)
        self._progress.update(self._bar, completed=event.done, total=event.total, details=details)
        tenth = 10 * event.done // max(event.total, 1)
        if not self._progress.console.is_terminal and tenth > self._printed_tenth:
            self._printed_tenth = tenth
            self._line(f"{event.stage:<8} {event.done}/{event.total} {details}")
