"""The list of jobs: searched, filtered, paged, and kept up to date."""

import json
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, button
from console.pages.formatting import STAGE_NAMES, TYPE_NAMES, ago, count, span
from console.pages.layout import Frame
from console.pages.try_it import TryIt
from console.services.services import Services
from console.views import JobPage, JobView
from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.state.job_search import JobFilter, parse_labels
from tasks.state.record import JobStatus

_PAGE_SIZE = 25
_REFRESH_INTERVAL_S = 3.0
_ANY = "any"


class JobsList:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
        search: Text in an id or name.
        status: Status of the jobs; empty for all.
    """

    def __init__(self, frame: Frame, services: Services, search: str, status: str) -> None:
        self._frame, self._services = frame, services
        self._search = search
        self._status = status if status in list(JobStatus) else _ANY
        self._cursors: list[str | None] = [None]
        self._shown: JobPage | None = None

    async def build(self) -> None:
        """Build the page."""
        with Tag("div", classes="page-head"):
            Tag("h1", "Jobs")
            if self._frame.caller.allows(Scope.JOBS_WRITE):
                Tag("a", "New job", "btn btn-primary", href=self._frame.link("/new"))
        with Tag("section", classes="panel", aria_label="Jobs"):
            with Tag("div", classes="filters", role="search"):
                Field(
                    "Search",
                    "text",
                    self._search,
                    self._set_search,
                    placeholder="Name, id or label=value",
                )
                statuses = [
                    Choice(_ANY, "Any"),
                    *(Choice(status, status.capitalize()) for status in JobStatus),
                ]
                Field("Status", "choice", self._status, self._set_status, choices=statuses)
            self._table = Tag("div", classes="table-box")
            self._pages = Tag("nav", classes="actions pages", aria_label="Pages")
        await self._refresh()
        ui.timer(_REFRESH_INTERVAL_S, self._refresh)

    async def _set_search(self, search: str) -> None:
        self._search = search.strip()
        await self._show_first_page()

    async def _set_status(self, status: str) -> None:
        self._status = status
        await self._show_first_page()

    async def _show_first_page(self) -> None:
        self._cursors = [None]
        filters = {"search": self._search, "status": "" if self._status == _ANY else self._status}
        query = urlencode({name: value for name, value in filters.items() if value})
        address = self._frame.link(f"/jobs?{query}" if query else "/jobs")
        # A reloaded page shows the same.
        ui.run_javascript(f"history.replaceState(null, '', {json.dumps(address)})")
        await self._refresh()

    async def _turn_page(self, *, older: bool) -> None:
        if older and self._shown is not None:
            self._cursors.append(self._shown.next_cursor)
        elif len(self._cursors) > 1:
            self._cursors.pop()
        await self._refresh()

    async def _refresh(self) -> None:
        try:
            page = await self._services.jobs.page(
                self._frame.allowed(Scope.JOBS_READ),
                _filter_of(self._search, None if self._status == _ANY else self._status),
                limit=_PAGE_SIZE,
                cursor=self._cursors[-1],
            )
        except (ConsoleError, JobError):
            return  # the next refresh retries
        if page == self._shown:
            return
        self._shown = page
        self._table.clear()
        with self._table:
            self._show(page.jobs)
        self._pages.clear()
        self._pages.set_visibility(len(self._cursors) > 1 or page.next_cursor is not None)
        with self._pages:
            if len(self._cursors) > 1:
                button("Newer", "small").on("click", lambda: self._turn_page(older=False))
            if page.next_cursor is not None:
                button("Older", "small").on("click", lambda: self._turn_page(older=True))

    def _show(self, jobs: tuple[JobView, ...]) -> None:
        if not jobs:
            self._show_empty()
            return
        with Tag("table", classes="table table-rows"):
            Tag("caption", "Jobs, newest first", "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading in ("Job", "Status", "Type", "Queue", "Submitted"):
                    Tag("th", heading, scope="col")
            with Tag("tbody"):
                for job in jobs:
                    self._show_job(job)

    def _show_job(self, job: JobView) -> None:
        with Tag("tr"):
            with Tag("td"):
                Tag("a", job.name, href=self._frame.link(f"/jobs/{quote(job.id)}"))
                Tag("div", job.id, "mono mono-small muted break")
            with Tag("td"):
                Tag("span", job.status, f"status status-{job.status}")
                Tag("div", _status_details(job), "muted small")
            Tag("td", TYPE_NAMES.get(job.type, job.type), "muted")
            Tag("td", job.queue, "muted nowrap")
            Tag("td", ago(job.created_at), "muted nowrap")

    def _show_empty(self) -> None:
        with Tag("div", classes="empty"):
            if self._search or self._status != _ANY:
                Tag("p", "No jobs match.")
                return
            Tag("p", "There are no jobs yet.")
            if self._frame.caller.allows(Scope.JOBS_WRITE):
                Tag("a", "Start the first job", "btn btn-primary", href=self._frame.link("/new"))
            TryIt(self._frame, self._services)


def _filter_of(search: str, status: str | None) -> JobFilter:
    """Return which jobs a search means: words with ``=`` are labels, the rest is text."""
    words = search.split()
    labels = parse_labels(word for word in words if "=" in word.strip("="))
    text = " ".join(word for word in words if "=" not in word.strip("="))
    return JobFilter(text=text, status=status, labels=labels)


def _status_details(job: JobView) -> str:
    if JobStatus(job.status).ended:
        return "" if job.error is None else job.error.code.replace("_", " ")
    stage = STAGE_NAMES.get(job.stage, job.stage)
    progress = job.progress
    if job.waiting_reason:
        return f"{stage}, waiting{_place(job)}"
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
