"""The page of a job: where it is, its loss as it falls, what it made, and what can be done."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from urllib.parse import quote

from nicegui import background_tasks, ui

from console.errors import ConsoleError
from console.pages.form.preview_panel import memory_bar
from console.pages.formatting import OTHER_REMEDY, REMEDIES, TYPE_NAMES, ago, span
from console.pages.job.event_log import EventLog
from console.pages.job.job_parts import FilesPart, LogPart, LossPart, SamplesPart, StagesPart
from console.pages.layout import Frame, dialog
from console.pages.markup import Tag, button, fact, panel
from console.services.services import Services
from console.views import JobView
from routing.classes import MemoryClass
from routing.queues import gpu_queue
from tasks.errors import JobError
from tasks.state.record import JobStatus

_SHOW_EVERY_S = 0.5
# Waits and expectations change without an event.
_ASK_EVERY_S = 5.0
_TRY_AGAIN_S = 3.0


class JobPage:
    """The page.

    Args:
        frame: The page around it.
        service: Knows the job.
        view: The job, as it is now.
    """

    def __init__(self, frame: Frame, services: Services, view: JobView) -> None:
        self._frame, self._services, self._view = frame, services, view
        self._heard = EventLog()
        self._ask: ui.dialog | None = None
        self._asked_at, self._tenth = 0.0, -1
        self._shown_files = False

    def build(self) -> None:
        """Make the page, and keep it up to date until it is left."""
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
                self._files = FilesPart(self._frame, view.id)
                with panel("Log"):
                    self._log = LogPart()
            with Tag("aside", classes="aside stack", aria_label="About this job"):
                self._build_about(view)
        self._show(view)
        task = background_tasks.create(self._follow(), name=f"follow {view.id}")
        ui.context.client.on_delete(task.cancel)
        ui.timer(_SHOW_EVERY_S, self._refresh)

    def _build_head(self, view: JobView) -> None:
        with Tag("div", classes="page-head"):
            with Tag("div", classes="page-head-title"):
                with Tag("h1"):
                    Tag("span", view.name)
                    self._status = Tag("span", "", "status")
                Tag("p", f"{TYPE_NAMES[view.type]} · {view.id}", "muted small break")
            with Tag("div", classes="actions"):
                self._pause = button("Pause").on("click", self._pause_it)
                self._resume = button("Resume", "primary").on("click", self._resume_it)
                self._cancel = button("Cancel", "danger").on("click", self._open_question)
                again = self._frame.link(f"/new?again={quote(view.id)}")
                Tag("a", "Run again with changes", "btn", href=again)
        self._ask = dialog(
            "Cancel this job?",
            "What was trained so far can be published first, or be dropped.",
            {
                "Cancel and keep what there is": ("danger", lambda: self._cancel_it(save=True)),
                "Cancel and drop it": ("danger", lambda: self._cancel_it(save=False)),
            },
        )

    def _open_question(self) -> None:
        assert self._ask is not None
        self._ask.open()

    def _build_about(self, view: JobView) -> None:
        with panel("About"), Tag("dl", classes="facts"):
            fact("Preset", view.preset or "none")
            fact("Tenant", view.tenant)
            fact("Priority", str(view.priority))
            fact("Queue", view.queue)
            fact("Submitted", f"{view.created_at:%Y-%m-%d %H:%M} UTC")
            self._ends = fact("Ends")
        classes = {gpu_queue(it): it.floor_gib for it in MemoryClass}
        expected = f"{view.needed_gib:.1f} GiB expected"
        with panel("GPU memory", expected), Tag("div", classes="stack-small"):
            memory_bar(view.memory_gib, classes.get(view.queue, view.needed_gib))
            Tag("p", f"{view.routing_reason[:1].upper()}{view.routing_reason[1:]}.", "help")

    async def _follow(self) -> None:
        """Hear all events, also those that come after the broker was away."""
        job_id = self._view.id
        while True:
            try:
                caller = self._frame.caller
                told = self._services.events.follow(caller, job_id, self._heard.position)
                async with aclosing(told) as batches:
                    async for batch in batches:
                        for event in batch:
                            self._heard.hear(event)
                return
            except (ConsoleError, JobError):
                await asyncio.sleep(_TRY_AGAIN_S)

    async def _refresh(self) -> None:
        """Show what has changed; mostly there is nothing."""
        now = asyncio.get_running_loop().time()
        is_over = JobStatus(self._view.status).ended
        if not self._heard.changed and (is_over or now - self._asked_at < _ASK_EVERY_S):
            return
        self._heard.changed, self._asked_at = False, now
        try:
            view = await self._services.jobs.get(self._frame.caller, self._view.id)
        except (ConsoleError, JobError):
            return  # asked again in a moment
        if view.stage != self._view.stage or view.status != self._view.status:
            self._frame.tell(f"{view.status}, {view.stage}")
        self._view = view
        self._show(view)
        await self._show_results(view)

    def _show(self, view: JobView) -> None:
        status = JobStatus(view.status)
        self._status.say(view.status)
        self._status.look(f"status status-{view.status}")
        self._pause.set_visibility(status in (JobStatus.QUEUED, JobStatus.RUNNING))
        self._resume.set_visibility(status in (JobStatus.PAUSED, JobStatus.PAUSING))
        self._cancel.set_visibility(not status.ended and status != JobStatus.CANCELLING)
        self._show_error(view)
        self._ends.say(_end(view))
        self._stages.show(view, self._heard)
        self._loss.show(self._heard.curve, is_over=status.ended)
        self._log.show(self._heard.lines)
        self._tell_progress()

    def _show_error(self, view: JobView) -> None:
        self._error.set_visibility(view.error is not None)
        if view.error is None or self._error.default_slot.children:
            return
        with self._error, Tag("div", classes="stack-small"):
            where = f" in {view.error.stage}" if view.error.stage else ""
            Tag("h2", f"{view.error.code.replace('_', ' ').capitalize()}{where}")
            Tag("p", view.error.message, "pre-line break")
            Tag("p", REMEDIES.get(view.error.code, OTHER_REMEDY), style="font-weight: 500")

    async def _show_results(self, view: JobView) -> None:
        caller = self._frame.caller
        try:
            if self._heard.samples != self._samples.shown:
                self._samples.show(await self._services.files.samples(caller, view.id), self._heard)
            if JobStatus(view.status).ended and not self._shown_files:
                files = await self._services.files.published(caller, view.id)
                self._files.show(files)
                self._shown_files = True
        except (ConsoleError, JobError):
            self._heard.changed = True  # the store is away for a moment

    def _tell_progress(self) -> None:
        """Tell screen readers of every tenth, not of every step."""
        progress = self._heard.progress
        if progress is None or progress.total <= 0:
            return
        tenth = 10 * progress.done // progress.total
        if tenth != self._tenth:
            self._tenth = tenth
            self._frame.tell(
                f"{progress.stage}: {progress.done} of {progress.total} {progress.unit}"
            )

    async def _pause_it(self) -> None:
        await self._do(lambda: self._services.jobs.pause(self._frame.caller, self._view.id))

    async def _resume_it(self) -> None:
        await self._do(lambda: self._services.jobs.resume(self._frame.caller, self._view.id))

    async def _cancel_it(self, *, save: bool) -> None:
        await self._do(
            lambda: self._services.jobs.cancel(self._frame.caller, self._view.id, save=save)
        )

    async def _do(self, change: Callable[[], Awaitable[JobView]]) -> None:
        try:
            self._view = await change()
        except (ConsoleError, JobError) as error:
            ui.notify(str(error), type="warning", multi_line=True)
        self._heard.changed = True
        self._show(self._view)


def _end(view: JobView) -> str:
    if JobStatus(view.status).ended:
        return ago(view.updated_at)
    if view.estimated_end_at is None:
        return "not known yet"
    left_s = (view.estimated_end_at - datetime.now(UTC)).total_seconds()
    return f"in about {span(max(left_s, 0.0))}" if left_s > 1 else "any moment"
