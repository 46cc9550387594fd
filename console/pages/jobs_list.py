"""The list of jobs: searched, filtered, selected, paged, and kept up to date."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode

from nicegui import ui
from nicegui.events import GenericEventArguments

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, button
from console.pages.formatting import (
    STAGE_NAMES,
    TYPE_NAMES,
    ago,
    count,
    queue_name,
    span,
    status_of,
)
from console.pages.job.changes import DeleteDialog
from console.pages.layout import Frame, dialog
from console.pages.try_it import TryIt
from console.security_headers import API
from console.services.jobs.comparison import MAX_JOBS
from console.services.services import Services
from console.views import JobPage, JobView
from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.state.job_search import JobFilter, parse_labels
from tasks.state.record import JobStatus

_PAGE_SIZE = 25
_REFRESH_INTERVAL_S = 3.0
_ANY = ""
_EMIT_CHECKED = "(event) => emit(event.target.checked)"
_PERIODS = {"": "Any time", "1": "Last 24 hours", "7": "Last 7 days", "30": "Last 30 days"}


@dataclass(frozen=True)
class ListFilters:
    """Which jobs the page lists, as its address says; empty values list all.

    Attributes:
        search: Text in an id, name, title or notes, and labels.
        status: A status.
        type: A training type.
        days: Days since the submission: ``1``, ``7`` or ``30``.
        tenant: A tenant, for operators.
    """

    search: str = ""
    status: str = _ANY
    type: str = _ANY
    days: str = _ANY
    tenant: str = _ANY

    def known(self) -> "ListFilters":
        """Return the filters without choices that the page does not offer."""
        return replace(
            self,
            status=self.status if self.status in list(JobStatus) else _ANY,
            type=self.type if self.type in TYPE_NAMES else _ANY,
            days=self.days if self.days in _PERIODS else _ANY,
            search=self.search.strip()[:200],
            tenant=self.tenant.strip()[:100],
        )

    def query(self) -> str:
        """Return the filters as the query of an address."""
        values = {it.name: getattr(self, it.name) for it in fields(self)}
        return urlencode({name: value for name, value in values.items() if value})

    def job_filter(self) -> JobFilter:
        """Return which jobs are meant: words with ``=`` are labels, other words are text."""
        words = self.search.split()
        labels = parse_labels(filter(_is_label, words))
        text = " ".join(word for word in words if not _is_label(word))
        since = datetime.now(UTC) - timedelta(days=int(self.days)) if self.days else None
        return JobFilter(
            text=text,
            status=self.status or None,
            type=self.type or None,
            tenant=self.tenant or None,
            labels=labels,
            created_after=since,
        )


def _is_label(word: str) -> bool:
    name, _, value = word.partition("=")
    return bool(name and value)


class JobsList:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
        filters: Which jobs to list.
    """

    def __init__(self, frame: Frame, services: Services, filters: ListFilters) -> None:
        self._frame, self._services, self._filters = frame, services, filters.known()
        if not frame.caller.is_operator:
            self._filters = replace(self._filters, tenant=_ANY)
        self._cursors: list[str | None] = [None]
        self._shown: JobPage | None = None
        self._rows: dict[str, _Row] = {}
        self._selected: dict[str, JobView] = {}
        self._emulated: frozenset[str] = frozenset()
        self._may_change = frame.caller.allows(Scope.JOBS_WRITE)

    async def build(self) -> None:
        """Build the page."""
        self._emulated = await self._services.fleet.emulated_queues()
        with Tag("div", classes="page-head"):
            Tag("h1", "Jobs")
            if self._may_change:
                Tag("a", "New job", "btn btn-primary", href=self._frame.link("/new"))
        with Tag("section", classes="panel", aria_label="Jobs"):
            self._add_filters()
            self._add_selection()
            self._table = Tag("div", classes="table-box")
            self._pages = Tag("nav", classes="actions pages", aria_label="Pages")
        await self._refresh()
        ui.timer(_REFRESH_INTERVAL_S, self._refresh)

    def _add_filters(self) -> None:
        filters = self._filters
        statuses = [Choice(_ANY, "Any"), *(Choice(it, it.capitalize()) for it in JobStatus)]
        types = [Choice(_ANY, "Any"), *(Choice(it, name) for it, name in TYPE_NAMES.items())]
        periods = [Choice(days, name) for days, name in _PERIODS.items()]
        with Tag("div", classes="filters", role="search"):
            Field(
                "Search", "text", filters.search, lambda it: self._filter(search=it),
                placeholder="Name, title, id or label=value",
            )  # fmt: skip
            for label, name, choices in (
                ("Status", "status", statuses),
                ("Type", "type", types),
                ("Submitted", "days", periods),
            ):
                value: str = getattr(filters, name)
                Field(label, "choice", value, self._setter(name), choices=choices)
            if self._frame.caller.is_operator:
                Field("Tenant", "text", filters.tenant, self._setter("tenant"))

    def _add_selection(self) -> None:
        """Add what is done with selected jobs."""
        self._selection = Tag(
            "div", classes="actions selection", role="group", aria_label="Selected jobs"
        )
        with self._selection:
            self._selected_count = Tag("span", classes="strong", role="status")
            self._compare = button("Compare", "small").on("click", self._open_comparison)
            self._cancel = button("Cancel", "small danger")
            self._delete = button("Delete", "small danger")
            button("Clear selection", "small").on("click", self._clear_selection)
        question = dialog(
            "Cancel the selected jobs?",
            "What they have trained so far is discarded. Cancel a job on its page to publish it.",
            {"Cancel jobs": ("danger", self._cancel_selected)},
        )
        deletion = DeleteDialog(self._frame, self._services, self._after_change)
        self._cancel.on("click", question.open)
        self._delete.on("click", lambda: deletion.open(self._ended()))
        self._show_selection()

    def _setter(self, name: str) -> Callable[[str], object]:
        return lambda value: self._filter(**{name: value})

    async def _filter(self, **changes: str) -> None:
        self._filters = replace(self._filters, **changes).known()
        self._cursors = [None]
        query = self._filters.query()
        address = self._frame.link(f"/jobs?{query}" if query else "/jobs")
        # A reloaded page shows the same.
        ui.run_javascript(f"history.replaceState(null, '', {json.dumps(address)})")
        await self._refresh()

    async def _turn_page(self, *, older: bool) -> None:
        following = None if self._shown is None else self._shown.next_cursor
        if not older:
            self._cursors = self._cursors[:-1] or [None]
        # A second click, before the page has turned, has the same cursor.
        elif following not in (None, self._cursors[-1]):
            self._cursors.append(following)
        await self._refresh()

    async def _refresh(self) -> None:
        try:
            page = await self._services.jobs.page(
                self._frame.allowed(Scope.JOBS_READ),
                self._filters.job_filter(),
                limit=_PAGE_SIZE,
                cursor=self._cursors[-1],
            )
        except (ConsoleError, JobError):
            return  # the next refresh retries
        if page == self._shown:
            return
        self._shown = page
        if [job.id for job in page.jobs] != list(self._rows) or not page.jobs:
            self._rebuild(page.jobs)
        # In place: images stay loaded, and the focus stays where it is.
        for job in page.jobs:
            self._rows[job.id].show(job)
            if job.id in self._selected:
                self._selected[job.id] = job
        self._show_selection()
        self._pages.clear()
        self._pages.set_visibility(len(self._cursors) > 1 or page.next_cursor is not None)
        with self._pages:
            if len(self._cursors) > 1:
                button("Newer", "small").on("click", lambda: self._turn_page(older=False))
            if page.next_cursor is not None:
                button("Older", "small").on("click", lambda: self._turn_page(older=True))

    def _rebuild(self, jobs: tuple[JobView, ...]) -> None:
        self._table.clear()
        self._rows = {}
        with self._table:
            if not jobs:
                self._show_empty()
                return
            with Tag("table", classes="table table-rows table-jobs"):
                Tag("caption", "Jobs, newest first", "sr-only")
                with Tag("thead"), Tag("tr"):
                    for heading in ("Select", "Last sample"):
                        with Tag("th", scope="col"):
                            Tag("span", heading, "sr-only")
                    for heading in ("Job", "Status", "Type", "Queue", "Submitted"):
                        Tag("th", heading, scope="col")
                with Tag("tbody"):
                    for job in jobs:
                        is_selected = job.id in self._selected
                        self._rows[job.id] = _Row(
                            self._frame, job, self._emulated, self._select, is_selected=is_selected
                        )

    def _show_empty(self) -> None:
        with Tag("div", classes="empty"):
            if self._filters != ListFilters() or len(self._cursors) > 1:
                Tag("p", "No jobs match.")
                return
            Tag("p", "There are no jobs yet. A job trains a model on your images.")
            if self._may_change:
                Tag("a", "Start the first job", "btn btn-primary", href=self._frame.link("/new"))
            TryIt(self._frame, self._services)

    def _select(self, job: JobView, is_selected: bool) -> None:
        if is_selected:
            self._selected[job.id] = job
        else:
            self._selected.pop(job.id, None)
        self._show_selection()

    def _show_selection(self) -> None:
        number = len(self._selected)
        active = [it for it in self._selected.values() if not JobStatus(it.status).ended]
        self._selection.set_visibility(number > 0)
        self._selected_count.update_text(f"{count(number, 'job')} selected" if number else "")
        self._compare.set_visibility(2 <= number <= MAX_JOBS)
        self._cancel.set_visibility(self._may_change and bool(active))
        self._delete.set_visibility(self._may_change and bool(self._ended()))

    def _ended(self) -> list[JobView]:
        return [it for it in self._selected.values() if JobStatus(it.status).ended]

    def _clear_selection(self) -> None:
        self._selected.clear()
        for row in self._rows.values():
            row.unselect()
        self._show_selection()

    def _open_comparison(self) -> None:
        query = urlencode([("job", job_id) for job_id in self._selected])
        ui.navigate.to(self._frame.link(f"/compare?{query}"))

    async def _cancel_selected(self) -> None:
        active = [it for it in self._selected.values() if not JobStatus(it.status).ended]
        for job in active:
            try:
                await self._services.jobs.cancel(self._frame.allowed(Scope.JOBS_WRITE), job.id)
            except (ConsoleError, JobError) as error:
                ui.notify(str(error), type="warning", multi_line=True)
        await self._after_change()

    async def _after_change(self) -> None:
        self._clear_selection()
        await self._refresh()


class _Row:
    """The row of a job, which changes in place."""

    def __init__(
        self,
        frame: Frame,
        job: JobView,
        emulated: frozenset[str],
        on_select: Callable[[JobView, bool], None],
        *,
        is_selected: bool,
    ) -> None:
        self._frame, self._job, self._on_select = frame, job, on_select
        with Tag("tr"):
            with Tag("td", classes="select"):
                self._box = Tag("input", "", "select-box", type="checkbox")
                self._box.set_attribute("checked", is_selected)
                self._box.on("change", self._changed, js_handler=_EMIT_CHECKED)
            with Tag("td", classes="thumbnail"):
                self._image = Tag("img", classes="mini", alt="", loading="lazy")
            with Tag("td", classes="wide"):
                self._title = Tag("a", href=frame.link(f"/jobs/{quote(job.id)}"))
                Tag("div", job.id, "mono mono-small muted break")
            with Tag("td"):
                self._status = Tag("span")
                self._details = Tag("div", "", "muted small")
                self._bar = Tag("progress", aria_label="Progress of the stage", max=100)
            Tag("td", TYPE_NAMES.get(job.type, job.type), "muted")
            Tag("td", queue_name(job.queue, emulated), "muted")
            self._age = Tag("td", "", "muted nowrap")
        self.show(job)

    def show(self, job: JobView) -> None:
        """Show the job as it is now."""
        self._job = job
        name, status = job.title or job.name, status_of(job)
        self._title.update_text(name)
        self._box.set_attribute("aria-label", f"Select {name}")
        self._status.update_text(status)
        self._status.set_classes(f"status status-{status}")
        self._details.update_text(_status_details(job))
        self._age.update_text(ago(job.created_at))
        progress = job.progress
        is_moving = progress is not None and progress.total > 0 and job.waiting_reason is None
        self._bar.set_visibility(is_moving)
        if progress is not None and is_moving:
            self._bar.set_attribute("value", min(100 * progress.done // progress.total, 100))
        has_image = job.sample is not None and self._frame.caller.allows(Scope.FILES)
        self._image.set_visibility(has_image)
        if has_image:
            path = f"{API}/jobs/{quote(job.id)}/samples/{quote(job.sample or '')}/thumbnail"
            self._image.set_attribute("src", self._frame.link(path))

    def unselect(self) -> None:
        """Show that the job is not selected."""
        self._box.set_attribute("checked", False)

    def _changed(self, event: GenericEventArguments) -> None:
        is_selected = event.args is True
        self._box.set_attribute("checked", is_selected)
        self._on_select(self._job, is_selected)


def _status_details(job: JobView) -> str:
    if JobStatus(job.status).ended:
        has_reason = job.error is not None and job.error.code != job.status
        return job.error.code.replace("_", " ") if job.error and has_reason else ""
    stage = STAGE_NAMES.get(job.stage, job.stage)
    progress = job.progress
    if job.waiting_reason:
        return f"{stage}{_place(job)}"
    if progress is None or progress.total <= 0:
        return stage
    return f"{stage}, {100 * progress.done // progress.total} %"


def _place(job: JobView) -> str:
    """Return where a waiting job stands."""
    before = "" if job.jobs_before is None else f": {count(job.jobs_before, 'job')} before it"
    if job.estimated_start_at is None:
        return before
    left_s = (job.estimated_start_at - datetime.now(UTC)).total_seconds()
    return f"{before}, about {span(max(left_s, 1.0))}"
