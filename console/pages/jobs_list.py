"""The list of jobs: searched, sifted, a page at a time, and kept up to date."""

import json
from urllib.parse import quote, urlencode

from nicegui import ui

from console.errors import ConsoleError
from console.pages.field import Choice, Field
from console.pages.formatting import STAGE_NAMES, TYPE_NAMES, ago
from console.pages.layout import Frame
from console.pages.markup import Tag, button
from console.services.services import Services
from console.views import JobPage as Found
from console.views import JobView
from tasks.errors import JobError
from tasks.state.record import JobStatus

_AT_A_TIME = 25
_ASK_EVERY_S = 3.0
_ANY = "any"


class JobsList:
    """The page.

    Args:
        frame: The page around it.
        service: Knows the jobs.
        search: A part of an id or name.
        status: Only jobs of this status; empty for all.
    """

    def __init__(self, frame: Frame, services: Services, search: str, status: str) -> None:
        self._frame, self._services = frame, services
        self._search = search
        self._status = status if status in list(JobStatus) else _ANY
        self._cursors: list[str | None] = [None]
        self._shown: Found | None = None

    async def build(self) -> None:
        """Make the page."""
        with Tag("div", classes="page-head"):
            Tag("h1", "Jobs")
            Tag("a", "New job", "btn btn-primary", href=self._frame.link("/new"))
        with Tag("section", classes="panel", aria_label="Jobs"):
            with Tag("div", classes="filters", role="search"):
                Field(
                    "Search", "text", self._search, self._find, placeholder="a name or an id"
                )  # fmt: skip
                statuses = [Choice(_ANY, "Any"), *(Choice(it, it.capitalize()) for it in JobStatus)]
                Field("Status", "choice", self._status, self._sift, choices=statuses)
            self._table = Tag("div", classes="table-box")
            self._pages = Tag(
                "nav", classes="actions", aria_label="Pages", style="margin-top: 40px"
            )
        await self._refresh()
        ui.timer(_ASK_EVERY_S, self._refresh)

    async def _find(self, search: str) -> None:
        self._search = search.strip()
        await self._start_over()

    async def _sift(self, status: str) -> None:
        self._status = status
        await self._start_over()

    async def _start_over(self) -> None:
        self._cursors = [None]
        asked = {"search": self._search, "status": "" if self._status == _ANY else self._status}
        query = urlencode({name: value for name, value in asked.items() if value})
        address = self._frame.link(f"/jobs?{query}" if query else "/jobs")
        # A page that is loaded anew shows the same.
        ui.run_javascript(f"history.replaceState(null, '', {json.dumps(address)})")
        await self._refresh()

    async def _turn(self, *, older: bool) -> None:
        if older and self._shown is not None:
            self._cursors.append(self._shown.next_cursor)
        elif len(self._cursors) > 1:
            self._cursors.pop()
        await self._refresh()

    async def _refresh(self) -> None:
        try:
            found = await self._services.jobs.page(
                self._frame.caller,
                search=self._search or None,
                status=None if self._status == _ANY else self._status,
                limit=_AT_A_TIME,
                cursor=self._cursors[-1],
            )
        except (ConsoleError, JobError):
            return  # asked again in a moment
        if found == self._shown:
            return
        self._shown = found
        self._table.clear()
        with self._table:
            self._show(found.jobs)
        self._pages.clear()
        self._pages.set_visibility(len(self._cursors) > 1 or found.next_cursor is not None)
        with self._pages:
            if len(self._cursors) > 1:
                button("Newer", "small").on("click", lambda: self._turn(older=False))
            if found.next_cursor is not None:
                button("Older", "small").on("click", lambda: self._turn(older=True))

    def _show(self, jobs: tuple[JobView, ...]) -> None:
        if not jobs:
            self._show_nothing()
            return
        with Tag("table", classes="table table-rows"):
            Tag("caption", "Jobs, the newest first", "sr-only")
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
                Tag("div", _doing(job), "muted small")
            Tag("td", TYPE_NAMES.get(job.type, job.type), "muted")
            Tag("td", job.queue, "muted nowrap")
            Tag("td", ago(job.created_at), "muted nowrap")

    def _show_nothing(self) -> None:
        with Tag("div", classes="empty"):
            if self._search or self._status != _ANY:
                Tag("p", "No job is like that.")
                return
            Tag("p", "There are no jobs yet.")
            Tag("a", "Start the first one", "btn btn-primary", href=self._frame.link("/new"))


def _doing(job: JobView) -> str:
    if JobStatus(job.status).ended:
        return "" if job.error is None else job.error.code.replace("_", " ")
    stage = STAGE_NAMES.get(job.stage, job.stage)
    progress = job.progress
    if progress is None or progress.total <= 0:
        return f"{stage}, waits" if job.waiting_reason else stage
    return f"{stage}, {100 * progress.done // progress.total} %"
