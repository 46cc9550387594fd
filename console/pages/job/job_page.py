"""The page of a job: progress, loss, samples, results, log, and actions."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import quote

from nicegui import background_tasks, ui

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, button, fact, memory_bar, panel
from console.pages.formatting import (
    OTHER_REMEDY,
    REMEDIES,
    TYPE_NAMES,
    ago,
    count,
    sentence,
    span,
)
from console.pages.job.event_log import EventLog
from console.pages.job.job_parts import FilesPart, LogPart, LossPart, SamplesPart, StagesPart
from console.pages.layout import Frame, dialog
from console.services.services import Services
from console.views import JobView
from routing.classes import MemoryClass
from routing.queues import gpu_queue
from tasks.access.api_keys import Caller, Scope
from tasks.errors import JobError
from tasks.state.record import JobStatus

_UPDATE_INTERVAL_S = 0.5
# Waiting reasons and estimates change without an event.
_REFRESH_INTERVAL_S = 5.0
_RETRY_DELAY_S = 3.0


class JobPage:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
        view: The job as it is now.
    """

    def __init__(self, frame: Frame, services: Services, view: JobView) -> None:
        self._frame, self._services, self._view = frame, services, view
        self._log = EventLog()
        self._refreshed_at, self._announced_tenth = 0.0, -1
        self._has_shown_files = False
        self._may_change = frame.caller.allows(Scope.JOBS_WRITE)

    def build(self) -> None:
        """Build the page, and keep it up to date until the browser leaves it."""
        view = self._view
        self._build_head(view)
        self._error = Tag("section", classes="note note-error", aria_label="Why it failed")
        with Tag("div", classes="columns"):
            with Tag("div", classes="stack"):
                with panel("Progress"):
                    self._stages = StagesPart()
                with panel("Loss"):
                    self._loss = LossPart()
                self._samples = SamplesPart(self._frame, view.id)
                self._files = FilesPart(self._frame, self._services.links, view.id)
                with panel("Log"):
                    self._log_part = LogPart()
            with Tag("aside", classes="aside stack", aria_label="About this job"):
                self._build_about(view)
        self._show(view)
        task = background_tasks.create(self._follow(), name=f"follow {view.id}")
        ui.context.client.on_delete(task.cancel)
        ui.timer(_UPDATE_INTERVAL_S, self._refresh)

    def _build_head(self, view: JobView) -> None:
        with Tag("div", classes="page-head"):
            with Tag("div", classes="page-head-title"):
                with Tag("h1"):
                    Tag("span", view.name)
                    self._status = Tag("span", "", "status")
                Tag("p", f"{TYPE_NAMES[view.type]} · {view.id}", "muted small break")
            with Tag("div", classes="actions"):
                self._pause_button = button("Pause").on("click", self._pause)
                self._resume_button = button("Resume", "primary").on("click", self._resume)
                self._cancel_button = button("Cancel", "danger")
                if self._may_change:
                    again = self._frame.link(f"/new?again={quote(view.id)}")
                    Tag("a", "Run again with changes", "btn", href=again)
        question = dialog(
            "Cancel this job?",
            "You can publish the result so far, or discard it.",
            {
                "Cancel and publish": ("danger", lambda: self._cancel(save=True)),
                "Cancel and discard": ("danger", lambda: self._cancel(save=False)),
            },
        )
        self._cancel_button.on("click", question.open)

    def _build_about(self, view: JobView) -> None:
        with panel("About"), Tag("dl", classes="facts"):
            fact("Preset", view.preset or "none")
            fact("Tenant", view.tenant)
            self._priority = fact("Priority")
            fact("Queue", view.queue)
            fact("Submitted", f"{view.created_at:%Y-%m-%d %H:%M} UTC")
            if view.labels:
                labels = (f"{name}={value}" for name, value in view.labels.items())
                fact("Labels", ", ".join(labels))
            self._start = fact("Start")
            self._end = fact("End")
            self._gpu_time = fact("GPU time")
        self._build_priority(view)
        classes = {gpu_queue(memory_class): memory_class.floor_gib for memory_class in MemoryClass}
        estimate = f"about {view.needed_gib:.1f} GiB"
        with panel("GPU memory", estimate), Tag("div", classes="stack-small"):
            memory_bar(view.memory_gib, classes.get(view.queue, view.needed_gib))
            Tag("p", sentence(view.routing_reason), "help")

    def _build_priority(self, view: JobView) -> None:
        """Add what changes the job's place among its tenant's waiting jobs."""
        self._order = Tag("section", classes="panel", aria_label="Order among the tenant's jobs")
        with self._order, Tag("div", classes="stack-small"):
            choices = [Choice(str(number), str(number)) for number in range(10)]
            Field(
                "Priority among your waiting jobs",
                "choice",
                str(view.priority),
                self._set_priority,
                choices=choices,
                help="9 starts first.",
            )
            button("Move to the front", "small").on("click", lambda: self._set_priority(None))

    async def _follow(self) -> None:
        """Read all events; reconnect when the broker is unavailable."""
        job_id = self._view.id
        while True:
            try:
                caller = self._frame.allowed(Scope.JOBS_READ)
                follow = self._services.events.follow(caller, job_id, self._log.position)
                async with follow as batches:
                    async for batch in batches:
                        for event in batch:
                            self._log.add(event)
                return
            except (ConsoleError, JobError):
                await asyncio.sleep(_RETRY_DELAY_S)

    async def _refresh(self) -> None:
        """Show what has changed, if anything."""
        now = asyncio.get_running_loop().time()
        has_ended = JobStatus(self._view.status).ended
        if not self._log.changed and (has_ended or now - self._refreshed_at < _REFRESH_INTERVAL_S):
            return
        self._log.changed, self._refreshed_at = False, now
        try:
            view = await self._services.jobs.get(
                self._frame.allowed(Scope.JOBS_READ), self._view.id
            )
        except (ConsoleError, JobError):
            return  # the next refresh retries
        if view.stage != self._view.stage or view.status != self._view.status:
            self._frame.announce(f"{view.status}, {view.stage}")
        self._view = view
        self._show(view)
        await self._show_results(view)

    def _show(self, view: JobView) -> None:
        status = JobStatus(view.status)
        self._status.update_text(view.status)
        self._status.set_classes(f"status status-{view.status}")
        may = self._may_change
        is_active = status in (JobStatus.QUEUED, JobStatus.RUNNING)
        self._pause_button.set_visibility(may and is_active)
        self._resume_button.set_visibility(may and status in (JobStatus.PAUSED, JobStatus.PAUSING))
        is_ending = status.ended or status == JobStatus.CANCELLING
        self._cancel_button.set_visibility(may and not is_ending)
        self._order.set_visibility(self._may_change and view.position is not None)
        front = ", moved to the front" if view.moved_to_front_at else ""
        self._priority.update_text(f"{view.priority}{front}")
        self._start.update_text(_start(view))
        self._gpu_time.update_text(_gpu_time(view))
        self._show_error(view)
        self._end.update_text(_end(view))
        self._stages.show(view, self._log)
        self._loss.show(self._log.curve, has_ended=status.ended)
        self._log_part.show(self._log.lines)
        self._announce_progress()

    def _show_error(self, view: JobView) -> None:
        self._error.set_visibility(view.error is not None)
        if view.error is None or self._error.default_slot.children:
            return
        with self._error, Tag("div", classes="stack-small"):
            stage = f" in {view.error.stage}" if view.error.stage else ""
            Tag("h2", f"{view.error.code.replace('_', ' ').capitalize()}{stage}")
            Tag("p", view.error.message, "pre-line break")
            Tag("p", REMEDIES.get(view.error.code, OTHER_REMEDY), "strong")

    async def _show_results(self, view: JobView) -> None:
        caller = self._frame.caller
        if not caller.allows(Scope.FILES):
            return
        try:
            if self._log.validations != self._samples.shown_validations:
                self._samples.show(await self._services.files.samples(caller, view.id), self._log)
            if JobStatus(view.status).ended and not self._has_shown_files:
                files = await self._services.files.published(caller, view.id)
                self._files.show(files)
                self._has_shown_files = True
        except (ConsoleError, JobError):
            self._log.changed = True  # the store is unavailable; the next update retries

    def _announce_progress(self) -> None:
        """Announce every tenth of the progress to screen readers, not every step."""
        progress = self._log.progress
        if progress is None or progress.total <= 0:
            return
        tenth = 10 * progress.done // progress.total
        if tenth != self._announced_tenth:
            self._announced_tenth = tenth
            self._frame.announce(
                f"{progress.stage}: {progress.done} of {progress.total} {progress.unit}"
            )

    async def _pause(self) -> None:
        await self._change(lambda: self._services.jobs.pause(self._writer(), self._view.id))

    async def _resume(self) -> None:
        await self._change(lambda: self._services.jobs.resume(self._writer(), self._view.id))

    async def _set_priority(self, priority: str | None) -> None:
        number = None if priority is None else int(priority)
        await self._change(
            lambda: self._services.jobs.prioritize(
                self._frame.allowed(Scope.JOBS_WRITE), self._view.id, number
            )
        )

    async def _cancel(self, *, save: bool) -> None:
        await self._change(
            lambda: self._services.jobs.cancel(self._writer(), self._view.id, save=save)
        )

    def _writer(self) -> Caller:
        return self._frame.allowed(Scope.JOBS_WRITE)

    async def _change(self, change: Callable[[], Awaitable[JobView]]) -> None:
        try:
            self._view = await change()
        except (ConsoleError, JobError) as error:
            ui.notify(str(error), type="warning", multi_line=True)
        self._log.changed = True
        self._show(self._view)


def _start(view: JobView) -> str:
    """Return where a waiting job stands, and when it is expected to start."""
    if view.waiting_reason is None:
        return "started" if view.stages[0].started_at else ""
    parts = []
    if view.jobs_before is not None:
        parts.append(f"{count(view.jobs_before, 'job')} before it")
    if view.estimated_start_at is not None:
        left_s = (view.estimated_start_at - datetime.now(UTC)).total_seconds()
        parts.append(f"in about {span(max(left_s, 1.0))}")
    elif view.estimated_start_unknown is not None:
        parts.append(f"time unknown: {view.estimated_start_unknown}")
    return ", ".join(parts) or view.waiting_reason


def _gpu_time(view: JobView) -> str:
    use = view.gpu_use
    seconds = ", ".join(f"{span(s)} of {name}" for name, s in use.seconds.items())
    if use.cost is None or not seconds:
        return seconds or "none yet"
    return f"{seconds}; {use.cost:.2f} {use.currency or ''}".rstrip()


def _end(view: JobView) -> str:
    if JobStatus(view.status).ended:
        return ago(view.updated_at)
    if view.estimated_end_at is None:
        return "unknown"
    left_s = (view.estimated_end_at - datetime.now(UTC)).total_seconds()
    return f"in about {span(max(left_s, 0.0))}" if left_s > 1 else "now"
