"""A saved dataset: its images and captions in the gallery of the form, saved as a whole."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Field, Tag, button, panel
from console.pages.form.drafts import OpenDraft
from console.pages.form.images_part import ImagesPart
from console.pages.formatting import count
from console.pages.layout import Frame
from console.services.images.dataset_views import SavedDatasetView
from console.services.services import Services
from tasks.access.api_keys import Scope
from tasks.data.uploads import upload_id_in
from tasks.errors import JobError

NEW = "new"
"""The id of a dataset that is not saved yet."""


class DatasetPage:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft with a copy of the images.
        save: Saves the draft.
        dataset: The dataset; None for a new one.
        on_saved: Called with the id of the saved dataset.
        on_discard: Discards the changes.
    """

    def __init__(
        self,
        frame: Frame,
        services: Services,
        opened: OpenDraft,
        save: Callable[[], Awaitable[None]],
        dataset: SavedDatasetView | None,
        on_saved: Callable[[str], Awaitable[None]],
        on_discard: Callable[[], Awaitable[None]],
    ) -> None:
        self._frame, self._services, self._opened = frame, services, opened
        self._save_draft, self._dataset, self._on_saved = save, dataset, on_saved
        self._on_discard = on_discard
        self._is_saving = False

    def build(self) -> None:
        """Build the page."""
        title = "New dataset" if self._dataset is None else self._dataset.name
        with Tag("div", classes="page-head"):
            with Tag("div", classes="page-head-title"):
                Tag("h1", title, "break")
                Tag("p", "Changes count once they are saved; jobs that run keep theirs.", "muted")
            with Tag("div", classes="actions"):
                if self._dataset is not None:
                    link = self._frame.link(f"/new?dataset={self._dataset.id}")
                    Tag("a", "Use in a new job", "btn", href=link)
                button("Discard changes", "quiet").on("click", self._on_discard, [])
                button("Save dataset", "primary").on("click", self._save)
        self._problem = Tag("p", "", "error", role="alert")
        self._status = Tag("p", "", "small", role="status")
        with panel("Name"):
            Field("Name of the dataset", "text", self._opened.draft.name, self._set_name)
        with panel("Images"), Tag("div", classes="stack"):
            self._part = ImagesPart(
                self._frame, self._services, self._opened, self._save_draft, lambda: None
            )
        ui.timer(0.05, self._open, once=True)

    async def _open(self) -> None:
        is_copied = self._part.copy.is_used
        await self._part.open("" if is_copied else "Loading the images of the dataset…")

    async def _set_name(self, name: Any) -> None:
        self._opened.draft.name = str(name)
        try:
            await self._save_draft()
        except ConsoleError as error:
            self._problem.update_text(error.message)

    async def _save(self) -> None:
        if self._is_saving:
            return
        self._is_saving = True
        self._problem.update_text("")
        self._status.update_text("Saving…")
        try:
            await self._part.copy.settle()
            saved = await self._saved(self._opened.draft.name)
        except (ConsoleError, JobError, OSError) as error:
            self._problem.update_text(f"The dataset was not saved: {error}")
            self._status.update_text("")
            return
        finally:
            self._is_saving = False
        self._frame.announce(f"Saved {count(saved.images, 'image')}")
        await self._on_saved(saved.id)

    async def _saved(self, name: str) -> SavedDatasetView:
        caller, datasets = self._frame.allowed(Scope.UPLOADS), self._services.datasets
        images, dataset = self._opened.collection, self._dataset
        if dataset is None:
            return await datasets.save(caller, name, images)
        edited = upload_id_in(str(self._opened.first["dataset"]["archive"])) or ""
        return await datasets.replace_images(caller, dataset.id, name, images, edited)
