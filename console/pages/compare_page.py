"""Jobs side by side: losses on one axis, samples by step and prompt, and options that differ."""

from urllib.parse import quote, urlencode

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, panel
from console.pages.formatting import TYPE_NAMES, span, status_of
from console.pages.job.job_parts import Chart
from console.pages.job.loss import LossCurve, comparison_chart
from console.pages.job.samples import SampleViewer, samples_of
from console.pages.layout import Frame
from console.services.jobs.comparison import MAX_JOBS, Comparison
from console.services.services import Services
from console.views import JobView
from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.state.job_search import JobFilter

_CANDIDATES = 50


class ComparePage:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
        comparison: The jobs, as they are now.
    """

    def __init__(self, frame: Frame, services: Services, comparison: Comparison) -> None:
        self._frame, self._services, self._comparison = frame, services, comparison
        self._names = _names([job.view for job in comparison.jobs])
        self._is_log = False

    async def build(self) -> None:
        """Build the page."""
        with Tag("div", classes="page-head"), Tag("div", classes="page-head-title"):
            Tag("h1", "Compare jobs")
            Tag("p", f"2 to {MAX_JOBS} jobs. Reload the page to see their progress.", "muted")
        await self._add_choice()
        if len(self._comparison.jobs) < 2:
            return
        with panel("Jobs"):
            self._add_facts()
        with panel("Loss", "The trends, on one axis."):
            self._add_losses()
        viewed = [
            samples_of(self._frame, job.view.id, name, job.samples)
            for name, job in zip(self._names, self._comparison.jobs, strict=True)
        ]
        if any(job["steps"] for job in viewed):
            with panel("Samples", "By prompt, each at the same step."):
                SampleViewer(viewed)
        with panel("Options that differ"):
            self._add_differences()

    async def _add_choice(self) -> None:
        """Add a field that adds a job to the comparison."""
        compared = [job.view.id for job in self._comparison.jobs]
        if len(compared) >= MAX_JOBS:
            return
        try:
            page = await self._services.jobs.page(
                self._frame.allowed(Scope.JOBS_READ), JobFilter(), limit=_CANDIDATES
            )
        except (ConsoleError, JobError):
            return  # the page shows what it has
        others = [job for job in page.jobs if job.id not in compared]
        first = Choice("", "Choose a job")
        choices = [first, *(Choice(it.id, f"{it.title or it.name} ({it.id})") for it in others)]

        def add(job_id: str) -> None:
            if job_id:
                query = urlencode([("job", it) for it in [*compared, job_id]])
                ui.navigate.to(self._frame.link(f"/compare?{query}"))

        with Tag("section", classes="panel", aria_label="Add a job"):
            Field("Add a job", "choice", "", add, choices=choices, help="The newest jobs.")

    def _add_facts(self) -> None:
        views = [job.view for job in self._comparison.jobs]
        finals = [
            f"{job.losses[-1][1]:.4f}" if job.losses else "-" for job in self._comparison.jobs
        ]
        seconds = [sum(view.gpu_use.seconds.values()) for view in views]
        rows = [
            ("Status", [status_of(view) for view in views]),
            ("Type", [TYPE_NAMES.get(view.type, view.type) for view in views]),
            ("Last loss", finals),
            ("GPU time", [span(second) if second else "-" for second in seconds]),
        ]
        with self._table("The jobs"), Tag("tbody"):
            for name, values in rows:
                self._add_row(name, values)

    def _add_losses(self) -> None:
        curves = {name: LossCurve() for name in self._names}
        for curve, job in zip(curves.values(), self._comparison.jobs, strict=True):
            for step, loss in job.losses:
                curve.add(step, loss)
        if all(curve.last is None for curve in curves.values()):
            Tag("p", "No training step was recorded.", "muted")
            return

        def show(is_log: bool) -> None:
            chart.show(comparison_chart(curves, is_log=is_log), " and ".join(curves), is_log)

        Field("Logarithmic", "switch", False, show)
        chart = Chart("Losses")
        show(False)

    def _add_differences(self) -> None:
        if not self._comparison.differences:
            Tag("p", "The jobs have the same options.", "muted")
            return
        with self._table("Options that differ"), Tag("tbody"):
            for difference in self._comparison.differences:
                self._add_row(difference.option, list(difference.values))

    def _table(self, caption: str) -> Tag:
        """Add a table with a column for each job, and return it."""
        with Tag("div", classes="table-box"):
            table = Tag("table", classes="table table-compare")
        with table:
            Tag("caption", caption, "sr-only")
            with Tag("thead"), Tag("tr"):
                with Tag("th", scope="col"):
                    Tag("span", "Fact or option", "sr-only")
                for name, job in zip(self._names, self._comparison.jobs, strict=True):
                    with Tag("th", scope="col"):
                        link = self._frame.link(f"/jobs/{quote(job.view.id)}")
                        Tag("a", name, "break", href=link)
        return table

    def _add_row(self, name: str, values: list[str]) -> None:
        with Tag("tr"):
            Tag("th", name, "break", scope="row")
            for value in values:
                Tag("td", value or "-", "break")


def _names(views: list[JobView]) -> list[str]:
    """Return what to call each job: its title or name, with the id if any two have the same."""
    names = [view.title or view.name for view in views]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({view.id})" for name, view in zip(names, views, strict=True)]
