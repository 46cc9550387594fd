"""The dataset of a job: images uploaded here, a saved dataset, or a source elsewhere."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, button, panel
from console.pages.form.controls import Kind
from console.pages.form.draft import Draft
from console.pages.form.drafts import OpenDraft
from console.pages.form.images_part import ImagesPart
from console.pages.form.working_copy import WorkingCopy, archive_of
from console.pages.formatting import count
from console.pages.layout import Frame
from console.services.images.dataset_views import SavedDatasetView
from console.services.services import Services
from console.views import UploadView
from tasks.access.api_keys import Scope
from tasks.data.stored_datasets import dataset_id_in, is_dataset
from tasks.errors import JobError

_UPLOAD, _SAVED = "here", "saved"
_SOURCE_NAMES = {
    "IMAGE_CAPTION_DIR_DATASET": "Folder with captions",
    "IMAGE_DIR_DATASET": "Folder without captions",
    "IMAGE_CAPTION_JSONL_DATASET": "JSONL file",
    "HF_HUB_IMAGE_CAPTION_DATASET": "Hugging Face Hub",
    "ARCHIVE": "Archive",
}


class DatasetPart:
    """The images of the form.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft.
        save: Saves the draft.
        on_changed: Called after the dataset changed.
    """

    def __init__(
        self,
        frame: Frame,
        services: Services,
        opened: OpenDraft,
        save: Callable[[], Awaitable[None]],
        on_changed: Callable[[], None],
    ) -> None:
        self._frame, self._services, self._opened = frame, services, opened
        self._on_changed = on_changed
        self._fields: dict[str, Field] = {}
        self._saved: tuple[SavedDatasetView, ...] = ()
        self._saved_name, self._is_saving = "", False
        hint = "Ten to fifty good images are enough for a subject or a style."
        with panel("Images", hint), Tag("div", classes="stack"):
            self._source_box = Tag("div", classes="source-box")
            self._source_fields = Tag("div", classes="grid-2")
            self._problem = Tag("p", "", "error", role="alert")
            self._part = ImagesPart(frame, services, opened, save, self._checked)
            self._save_box = Tag("details")
            with self._save_box:
                self._add_saving()

    @property
    def _draft(self) -> Draft:
        return self._opened.draft

    @property
    def images(self) -> WorkingCopy:
        """The images that are here."""
        return self._part.copy

    @property
    def has_images(self) -> bool:
        """Whether the job has images: here, or in a source elsewhere."""
        return self._draft.dataset is not None or bool(self._opened.images)

    def rebuild(self) -> None:
        """Offer the sources of the training type."""
        control = self._draft.control(f"{self._draft.dataset_path}.type")
        sources = control.choices if control else ()
        source = self._source()
        if source not in (_UPLOAD, _SAVED, *sources):
            self._draft.dataset = None
            source = _UPLOAD
        self._source_box.clear()
        with self._source_box:
            choices = [Choice(_UPLOAD, "Upload here"), Choice(_SAVED, "Your datasets")]
            choices += [Choice(source, _SOURCE_NAMES.get(source, source)) for source in sources]
            Field("Source", "choice", source, self._choose_source, choices=choices)
        self._show_source(source)

    def mark(self, errors: Mapping[str, str]) -> None:
        """Show errors by option path, beside their fields if there are any."""
        folder = self._draft.dataset_path
        for name, field in self._fields.items():
            field.flag(errors.get(f"{folder}.{name}", ""))
        others = [text for path, text in errors.items() if self._is_without_field(path)]
        self._problem.update_text("; ".join(others))

    def focus(self) -> None:
        """Scroll this part into view."""
        if self._fields:
            next(iter(self._fields.values())).focus()
        else:
            self._part.focus()

    async def check_if_stale(self) -> None:
        """Check the images if they or the options have changed."""
        await self._part.check_if_stale()

    def offer_check(self) -> None:
        """Show that the report is about other options."""
        self._part.offer_check()

    async def open_images(self) -> None:
        """Show the images that the draft has, or copy those of an earlier job."""
        source = self._source()
        if source == _SAVED:
            await self._list_saved()
            self._show_source(source)
            await self._part.check()
            return
        is_former = source == _UPLOAD and not self.images.is_used
        await self._part.open("Loading the images of that job…" if is_former else "")

    async def upload(self) -> UploadView | None:
        """Upload the images that are here; return None, and show why, if that failed."""
        return await self._part.upload(f"{self._draft.name}.zip")

    def _checked(self) -> None:
        self._save_box.set_visibility(self.images.is_used and bool(self._opened.images))
        self._on_changed()

    def _add_saving(self) -> None:
        Tag("summary", "Save as dataset", "small")
        with Tag("div", classes="stack-small"):
            Tag("p", "Other jobs can use saved images, also after this job is gone.", "small muted")
            with Tag("div", classes="actions actions-end"):
                Field("Name of the dataset", "text", "", self._set_saved_name)
                button("Save as dataset", "small").on("click", self._save_as_dataset)
            self._saved_status = Tag("p", "", "small", role="status")
        self._save_box.set_visibility(False)

    def _set_saved_name(self, name: Any) -> None:
        self._saved_name = str(name)

    async def _save_as_dataset(self) -> None:
        if self._is_saving:
            return
        self._is_saving = True
        name = self._saved_name or self._draft.name
        self._saved_status.update_text("Saving…")
        try:
            await self.images.settle()
            dataset = await self._services.datasets.save(
                self._frame.allowed(Scope.UPLOADS), name, self._opened.collection
            )
        except (ConsoleError, JobError, OSError) as error:
            self._saved_status.update_text(f"The dataset was not saved: {error}")
            return
        finally:
            self._is_saving = False
        images = count(dataset.images, "image")
        self._saved_status.update_text(f"Saved {images} as {dataset.name}.")

    async def _list_saved(self) -> None:
        try:
            self._saved = await self._services.datasets.all(self._frame.allowed(Scope.UPLOADS))
        except (ConsoleError, JobError) as error:
            self._part.show_messages([f"Your datasets cannot be listed: {error}"])

    def _source(self) -> str:
        dataset = self._draft.dataset
        if dataset is None:
            return _UPLOAD
        archive = str(dataset.get("archive", ""))
        if is_dataset(archive):
            return _SAVED
        # Loose files have no masks: the images of a job with masks are used as they are.
        is_former = archive.startswith("upload:")
        if is_former and not self._draft.value("use_masks"):
            return _UPLOAD
        return str(dataset["type"])

    async def _choose_source(self, source: str) -> None:
        self._draft.dataset = None if source == _UPLOAD else {"type": source}
        if source == _SAVED:
            await self._list_saved()
            self._draft.dataset = archive_of(self._saved[0]) if self._saved else None
        self._show_source(source)
        self._part.forget_report()
        if self._draft.dataset is None and not self._opened.images:
            self._on_changed()
        elif source in (_UPLOAD, _SAVED):
            await self._part.check()
        else:
            self._part.offer_check()
            self._on_changed()

    def _show_saved(self) -> None:
        """Offer the saved datasets."""
        present = str((self._draft.dataset or {}).get("archive", ""))
        if not self._saved:
            Tag("p", "No saved datasets yet: upload images here, and save them.", "muted small")
            return
        choices = [
            Choice(it.source, f"{it.name} ({count(it.images, 'image')})") for it in self._saved
        ]
        Field("Dataset", "choice", present, self._choose_saved, choices=choices)
        with Tag("div", classes="actions"):
            button("Copy its images here", "small").on("click", self._copy_saved)
            link = self._frame.link(f"/datasets/{dataset_id_in(present)}")
            Tag("a", "Edit the dataset", "btn btn-small", href=link)

    async def _choose_saved(self, source: str) -> None:
        chosen = next((it for it in self._saved if it.source == source), None)
        if chosen is None:
            return  # the browser was manipulated
        self._draft.dataset = archive_of(chosen)
        self._show_source(_SAVED)
        await self._part.check()

    async def _copy_saved(self) -> None:
        source = str((self._draft.dataset or {}).get("archive", ""))
        chosen = next((it for it in self._saved if it.source == source), None)
        if chosen is None:
            return
        try:
            await self.images.add_upload(chosen.upload)
        except (ConsoleError, JobError, OSError) as error:
            self._part.show_messages([f"The images cannot be copied: {error}"])
            return
        self._draft.dataset = None
        self.rebuild()
        await self._part.check()

    def _show_source(self, source: str) -> None:
        self._part.set_visibility(source == _UPLOAD)
        self._save_box.set_visibility(source == _UPLOAD and bool(self._opened.images))
        self._source_fields.set_visibility(source != _UPLOAD)
        self._source_fields.clear()
        self._fields.clear()
        if source == _UPLOAD:
            return
        if source == _SAVED:
            with self._source_fields:
                self._show_saved()
            return
        folder = self._draft.dataset_path
        with self._source_fields:
            for control in self._draft.dataset_controls(source):
                name = control.path.removeprefix(f"{folder}.")
                kind = str(
                    control.kind if control.choices or control.kind != Kind.CHOICE else "text"
                )
                value = (self._draft.dataset or {}).get(name, control.default)
                self._fields[name] = Field(
                    name, kind, control.show(value), partial(self._set, name), help=control.help
                )

    def _set(self, name: str, typed: Any) -> None:
        dataset = self._draft.dataset
        if dataset is None:
            return
        controls = self._draft.dataset_controls(str(dataset["type"]))
        control = next(candidate for candidate in controls if candidate.path.endswith(f".{name}"))
        value = control.read(typed)
        if value == control.default and not control.required:
            dataset.pop(name, None)
        else:
            dataset[name] = value
        self._on_changed()

    def _is_without_field(self, path: str) -> bool:
        folder = self._draft.dataset_path
        return path == folder or (
            path.startswith(f"{folder}.") and path.removeprefix(f"{folder}.") not in self._fields
        )
