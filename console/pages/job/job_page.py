"""The page of a job: samples, progress, loss, results, events, and actions."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from nicegui import background_tasks, ui

from console.errors import ConsoleError
from console.pages.elements import (
    Choice,
    Field,
    Tag,
    button,
    memory_bar,
    panel,
)
from console.pages.formatting import (
    OTHER_REMEDY,
    REMEDIES,
    STAGE_NAMES,
    TYPE_NAMES,
    sentence,
    size,
    status_of,
)
from console.pages.job.about import AboutPart, left_s, minutes
from console.pages.job.changes import DeleteDialog, EditDialog
from console.pages.job.event_log import EventLog
from console.pages.job.job_parts import LogPart, LossPart, StagesPart
from console.pages.job.results import CopiesPart, DeliveriesPart, FilesPart, file_link
from console.pages.job.samples import SampleViewer, samples_of
from console.pages.layout import Frame, dialog
from console.services.services import Services
from console.views import FilesView, JobView
from routing.classes import MemoryClass
from routing.queues import gpu_queue
from tasks.access.api_keys import Caller, Scope
from tasks.errors import JobError, UnknownJobError
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
        emulated: Queues whose GPUs are emulated.
    """

    def __init__(
        self, frame: Frame, services: Services, view: JobView, emulated: frozenset[str]
    ) -> None:
        self._frame, self._services, self._view = frame, services, view
        self._emulated = emulated
        self._log = EventLog()
        self._refreshed_at, self._announced_tenth = 0.0, -1
        self._files_view: FilesView | None = None
        self._shown_samples = -1
        self._may_change = frame.caller.allows(Scope.JOBS_WRITE)
        self._tab_title = ""

    def build(self) -> None:
        """Build the page, and keep it up to date until the browser leaves it."""
        view = self._view
        self._build_head(view)
        self._error = Tag("section", classes="note note-error", aria_label="Why it failed")
        with Tag("div", classes="columns"):
            with Tag("div", classes="stack"):
                self._samples_panel = panel("Samples", "The same prompts and noise at each step.")
                with self._samples_panel:
                    self._samples = SampleViewer([])
                self._samples_panel.set_visibility(False)
                with panel("Progress"):
                    self._stages = StagesPart()
                with panel("Loss"):
                    self._loss = LossPart()
                self._files = FilesPart(self._frame, self._services.links, view.id)
                self._copies = CopiesPart()
                self._deliveries = DeliveriesPart()
                with (
                    Tag("section", classes="panel", aria_label="Events"),
                    Tag("details"),
                ):
                    with Tag("summary"):
                        Tag("h2", "Events")
                    with Tag("div", classes="code-box"):
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
                    self._title = Tag("span", classes="break")
                    self._status = Tag("span", "", "status")
                Tag("p", f"{TYPE_NAMES[view.type]} · {view.id}", "muted small break")
            with Tag("div", classes="actions"):
                self._download = Tag("a", "Download", "btn btn-primary")
                self._download.set_visibility(False)
                self._pause_button = button("Pause").on("click", self._pause)
                self._resume_button = button("Resume", "primary").on("click", self._resume)
                self._cancel_button = button("Cancel", "danger")
                if self._may_change:
                    again = self._frame.link(f"/new?again={quote(view.id)}")
                    Tag("a", "Run again with changes", "btn", href=again)
                compare = self._frame.link(f"/compare?job={quote(view.id)}")
                Tag("a", "Compare", "btn", href=compare)
                edit, delete = button("Rename"), button("Delete", "danger")
                edit.set_visibility(self._may_change)
                self._delete_button = delete
        question = dialog(
            "Cancel this job?",
            "You can publish the result so far, or discard it.",
            {
                "Cancel and publish": ("danger", lambda: self._cancel(save=True)),
                "Cancel and discard": ("danger", lambda: self._cancel(save=False)),
            },
        )
        self._cancel_button.on("click", question.open)
        edit_dialog = EditDialog(self._frame, self._services, self._show_changed)
        edit.on("click", lambda: edit_dialog.open(self._view))
        deletion = DeleteDialog(self._frame, self._services, self._leave)
        delete.on("click", lambda: deletion.open([self._view]))

    def _build_about(self, view: JobView) -> None:
        self._about = AboutPart(view, self._emulated)
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
            except UnknownJobError:
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
        except UnknownJobError:
            await self._leave()  # someone else has deleted it
            return
        except (ConsoleError, JobError):
            return  # the next refresh retries
        if view.stage != self._view.stage or status_of(view) != status_of(self._view):
            self._frame.announce(f"{status_of(view)}, {STAGE_NAMES.get(view.stage, view.stage)}")
        self._view = view
        self._show(view)
        await self._show_results(view)

    def _show(self, view: JobView) -> None:
        status = JobStatus(view.status)
        self._title.update_text(view.title or view.name)
        shown = status_of(view)
        self._status.update_text(shown)
        self._status.set_classes(f"status status-{shown}")
        may = self._may_change
        is_active = status in (JobStatus.QUEUED, JobStatus.RUNNING)
        self._pause_button.set_visibility(may and is_active)
        self._resume_button.set_visibility(may and status in (JobStatus.PAUSED, JobStatus.PAUSING))
        is_ending = status.ended or status == JobStatus.CANCELLING
        self._cancel_button.set_visibility(may and not is_ending)
        self._delete_button.set_visibility(may and status.ended)
        self._order.set_visibility(self._may_change and view.position is not None)
        self._show_error(view)
        self._about.show(view, self._log.progress)
        self._stages.show(view, self._log)
        self._loss.show(self._log, has_ended=status.ended)
        self._copies.show(
            (view.result.model_extra or {}).get("copies") or () if view.result else ()
        )
        self._show_tab_title(view)
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
        try:
            if caller.allows(Scope.WEBHOOKS):
                sent = await self._services.webhooks.deliveries(caller, view.id)
                self._deliveries.show(sent.deliveries)
            if caller.allows(Scope.FILES):
                await self._show_files(caller, view)
        except (ConsoleError, JobError):
            self._log.changed = True  # the store is unavailable; the next update retries

    async def _show_files(self, caller: Caller, view: JobView) -> None:
        has_new_files = JobStatus(view.status).ended and self._files_view is None
        if has_new_files:
            files = await self._services.files.published(caller, view.id)
            self._files.show(files)
            self._files_view = files
            self._download.set_visibility(bool(files.files))
            if files.files:
                first = files.files[0]
                self._download.update_text(f"Download the result ({size(first.size)})")
                self._download.set_attribute("href", file_link(self._frame, view.id, first))
                self._download.set_attribute("download", first.name)
        if has_new_files or self._log.validations != self._shown_samples:
            self._shown_samples = self._log.validations
            samples = await self._services.files.samples(caller, view.id)
            self._samples_panel.set_visibility(bool(samples))
            self._samples.show(
                [samples_of(self._frame, view.id, view.name, samples, self._files_view)]
            )

    def _show_changed(self, view: JobView) -> None:
        self._view = view
        self._show(view)
        self._frame.announce("Saved")

    async def _leave(self) -> None:
        ui.navigate.to(self._frame.link("/jobs"))

    def _show_tab_title(self, view: JobView) -> None:
        """Show in the browser's tab how far the job is."""
        parts = [view.title or view.name, "training-worker"]
        progress = self._log.progress
        if JobStatus(view.status).ended:
            parts.insert(0, view.status)
        elif view.waiting_reason is not None:
            parts.insert(0, "waiting")
        elif progress is not None and progress.total > 0 and progress.stage == view.stage:
            left = left_s(view, progress)
            done = f"{100 * progress.done // progress.total} %"
            parts.insert(0, done if left is None else f"{done}, {minutes(left)} left")
        title = " · ".join(parts)
        if title != self._tab_title:
            self._tab_title = title
            ui.run_javascript(f"document.title = {json.dumps(title)}")

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
