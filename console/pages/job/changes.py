"""Dialogs that change what is recorded of jobs: the title, notes and labels, and the deletion."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Field, Tag, button
from console.pages.formatting import count, sentence, size
from console.pages.layout import Frame
from console.services.services import Services
from console.views import JobView
from tasks.access.api_keys import Scope
from tasks.errors import JobError, UnknownJobError
from tasks.jobs.edit import JobEdit
from tasks.jobs.problems import validate
from tasks.state.job_search import parse_labels


class EditDialog:
    """Asks for a job's title, notes and labels.

    Args:
        frame: Frame of the page.
        services: The services.
        on_changed: Called with the changed job.
    """

    def __init__(
        self, frame: Frame, services: Services, on_changed: Callable[[JobView], object]
    ) -> None:
        self._frame, self._services, self._on_changed = frame, services, on_changed
        self._job_id = ""
        self._values = {"title": "", "notes": "", "labels": ""}
        with ui.dialog() as self._dialog, Tag("div", classes="dialog") as box:
            heading = Tag("h2", "Rename this job")
            self._fields = {
                "title": Field(
                    "Title", "text", "", lambda value: self._set("title", value),
                    help="The id and the names of the files stay.",
                ),
                "notes": Field("Notes", "lines", "", lambda value: self._set("notes", value)),
                "labels": Field(
                    "Labels", "lines", "", lambda value: self._set("labels", value),
                    help="One name=value a line.",
                ),
            }  # fmt: skip
            with Tag("div", classes="actions"):
                button("Save", "primary").on("click", self._save)
                button("Go back").on("click", self._dialog.close)
        box.set_attribute("role", "dialog")
        box.set_attribute("aria_labelledby", heading.html_id)

    def open(self, view: JobView) -> None:
        """Open the dialog for a job."""
        self._job_id = view.id
        labels = "\n".join(f"{name}={value}" for name, value in view.labels.items())
        self._values = {"title": view.title or "", "notes": view.notes or "", "labels": labels}
        for name, field in self._fields.items():
            field.show(self._values[name])
            field.flag()
        self._dialog.open()

    def _set(self, name: str, value: str) -> None:
        self._values[name] = value

    async def _save(self) -> None:
        changes, problems = self._changes()
        for name, field in self._fields.items():
            field.flag(problems.get(name, ""))
        if changes is None:
            return
        try:
            caller = self._frame.allowed(Scope.JOBS_WRITE)
            view = await self._services.records.edit(caller, self._job_id, changes)
        except (ConsoleError, JobError) as error:
            ui.notify(str(error), type="warning", multi_line=True)
            return
        self._dialog.close()
        self._on_changed(view)

    def _changes(self) -> tuple[JobEdit | None, dict[str, str]]:
        """Return what to change, or what is wrong by the field."""
        lines = [line.strip() for line in self._values["labels"].splitlines() if line.strip()]
        try:
            labels = {name: text or "" for name, text in parse_labels(lines).items()}
        except ValueError as error:
            return None, {"labels": sentence(str(error))}
        document = {"title": self._values["title"], "notes": self._values["notes"]}
        changes, problems = validate({**document, "labels": labels}, JobEdit)
        return changes, {it.location.partition(".")[0]: sentence(it.message) for it in problems}


class DeleteDialog:
    """Asks before jobs are deleted, and says what goes and how much space it frees.

    Args:
        frame: Frame of the page.
        services: The services.
        on_deleted: Called after jobs were deleted.
    """

    def __init__(
        self, frame: Frame, services: Services, on_deleted: Callable[[], Awaitable[None]]
    ) -> None:
        self._frame, self._services, self._on_deleted = frame, services, on_deleted
        self._jobs: Sequence[JobView] = ()
        with ui.dialog() as self._dialog, Tag("div", classes="dialog") as box:
            self._heading = Tag("h2")
            self._names = Tag("p", "", "break strong")
            self._text = Tag("p", "", "muted")
            with Tag("div", classes="actions"):
                button("Delete for good", "danger").on("click", self._delete)
                button("Go back").on("click", self._dialog.close)
        box.set_attribute("role", "alertdialog")
        box.set_attribute("aria_labelledby", self._heading.html_id)

    async def open(self, jobs: Sequence[JobView]) -> None:
        """Open the dialog for jobs that have ended."""
        self._jobs = jobs
        one = len(jobs) == 1
        self._heading.update_text("Delete this job?" if one else f"Delete {len(jobs)} jobs?")
        self._names.update_text(", ".join(job.title or job.name for job in jobs))
        self._text.update_text(f"{_WHAT_GOES} Their size is being read. {_WHAT_STAYS}")
        self._dialog.open()
        freed = await self._size(jobs)
        # The dialog may be open for other jobs by now.
        if self._jobs is jobs:
            self._text.update_text(f"{_WHAT_GOES} {freed} {_WHAT_STAYS}")

    async def _size(self, jobs: Sequence[JobView]) -> str:
        total = 0
        try:
            for job in jobs:
                with suppress(UnknownJobError):  # someone else has deleted it
                    caller = self._frame.allowed(Scope.JOBS_READ)
                    total += (await self._services.records.storage(caller, job.id)).total_bytes
        except (ConsoleError, JobError) as error:
            return f"Their size is unknown: {error}."
        return f"This frees {size(total)}."

    async def _delete(self) -> None:
        self._dialog.close()
        deleted = 0
        for job in self._jobs:
            try:
                caller = self._frame.allowed(Scope.JOBS_WRITE)
                await self._services.records.delete(caller, job.id)
                deleted += 1
            except (ConsoleError, JobError) as error:
                ui.notify(str(error), type="warning", multi_line=True)
        if deleted:
            self._frame.announce(f"{count(deleted, 'job')} deleted")
            await self._on_deleted()


_WHAT_GOES = (
    "The published files, checkpoints, samples, events and the record are removed, "
    "and cannot be restored."
)
_WHAT_STAYS = "Copies on the Hub or in a bucket, uploads, usage and the audit log stay."
