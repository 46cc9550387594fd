"""The saved datasets of a user: used in jobs, edited, renamed and deleted."""

from functools import partial

from console.errors import ConsoleError
from console.pages.elements import Tag, button
from console.pages.formatting import ago, count, size
from console.pages.layout import Frame, dialog
from console.services.images.dataset_views import SavedDatasetView
from console.services.services import Services
from tasks.access.api_keys import Scope
from tasks.errors import JobError


class DatasetsPage:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
    """

    def __init__(self, frame: Frame, services: Services) -> None:
        self._frame, self._services = frame, services

    async def build(self) -> None:
        """Build the page."""
        with Tag("div", classes="page-head"):
            with Tag("div", classes="page-head-title"):
                Tag("h1", "Datasets")
                Tag("p", "Images with captions that any of your jobs can use.", "muted")
            Tag("a", "New dataset", "btn btn-primary", href=self._frame.link("/datasets/new"))
        with Tag("section", classes="panel", aria_label="Datasets"):
            self._problem = Tag("p", "", "error", role="alert")
            self._table = Tag("div", classes="table-box")
        await self._show()

    async def _show(self) -> None:
        try:
            datasets = await self._services.datasets.all(self._frame.allowed(Scope.UPLOADS))
        except (ConsoleError, JobError) as error:
            self._problem.update_text(f"The datasets cannot be listed: {error}")
            return
        self._table.clear()
        with self._table:
            if not datasets:
                Tag("p", "No datasets yet.", "muted empty")
                return
            with Tag("table", classes="table table-rows"):
                Tag("caption", "Datasets, the last changed first", "sr-only")
                with Tag("thead"), Tag("tr"):
                    for heading in ("Name", "Images", "Size", "Changed", "Actions"):
                        Tag("th", heading, scope="col")
                with Tag("tbody"):
                    for dataset in datasets:
                        self._show_row(dataset)

    def _show_row(self, dataset: SavedDatasetView) -> None:
        with Tag("tr"):
            with Tag("td", classes="wide break"):
                Tag("a", dataset.name, href=self._frame.link(f"/datasets/{dataset.id}"))
            Tag("td", count(dataset.images, "image"))
            Tag("td", size(dataset.size))
            Tag("td", ago(dataset.updated_at))
            with Tag("td", classes="right act"), Tag("div", classes="actions"):
                link = self._frame.link(f"/new?dataset={dataset.id}")
                label = f"Use in a new job: {dataset.name}"
                Tag("a", "Use in a new job", "btn btn-small", href=link, aria_label=label)
                delete = button("Delete", "quiet small", aria_label=f"Delete {dataset.name}")
        asked = dialog(
            f"Delete {dataset.name}?",
            "Jobs that were started keep its images until they have read them.",
            {"Delete": ("danger", partial(self._delete, dataset))},
        )
        delete.on("click", asked.open)

    async def _delete(self, dataset: SavedDatasetView) -> None:
        try:
            await self._services.datasets.delete(self._frame.allowed(Scope.UPLOADS), dataset.id)
        except (ConsoleError, JobError) as error:
            self._problem.update_text(f"{dataset.name} was not deleted: {error}")
            return
        self._frame.announce(f"Deleted {dataset.name}")
        await self._show()
