"""The dataset of a job: images uploaded here or a source elsewhere, and the report on them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from nicegui import background_tasks
from nicegui.elements.upload_files import FileUpload

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, panel
from console.pages.form.caption_tools import CaptionTools
from console.pages.form.caption_writer import CaptionWriter
from console.pages.form.controls import Kind
from console.pages.form.draft import Draft
from console.pages.form.drafts import OpenDraft
from console.pages.form.gallery import Gallery
from console.pages.form.image_upload import ImageDrop
from console.pages.form.report import Report
from console.pages.form.working_copy import WorkingCopy
from console.pages.layout import Frame
from console.services.image_collection import ACCEPTED
from console.services.services import Services
from console.views import UploadView
from tasks.errors import JobError

_UPLOAD = "here"
_SOURCE_NAMES = {
    "IMAGE_CAPTION_DIR_DATASET": "Folder with captions",
    "IMAGE_DIR_DATASET": "Folder without captions",
    "IMAGE_CAPTION_JSONL_DATASET": "JSONL file",
    "HF_HUB_IMAGE_CAPTION_DATASET": "Hugging Face Hub",
    "ARCHIVE": "Archive",
}
_MAX_MESSAGES = 20
# Images are checked again after edits, once the user pauses for this long.
_CHECK_DELAY_S = 1.5


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
        self._opened, self._on_changed = opened, on_changed
        self._fields: dict[str, Field] = {}
        self._edits = 0
        self.images = WorkingCopy(frame, services, opened, save)
        hint = "Ten to fifty good images are enough for a subject or a style."
        with panel("Images", hint), Tag("div", classes="stack"):
            self._source_box = Tag("div", classes="source-box")
            self._upload_box = Tag("div")
            self._source_fields = Tag("div", classes="grid-2")
            self._problem = Tag("p", "", "error", role="alert")
            self._messages = Tag("p", "", "note note-warning pre-line small", role="status")
            with Tag("div", classes="stack-small"):
                self._report = Report(frame, opened, self._remove, self.check)
            self._tools = CaptionTools(
                frame, opened, self.images, lambda: self._add_writer(frame, services), self._edited
            )
            self._gallery = Gallery(frame, opened, self._remove, self._write_caption)
        with self._upload_box:
            self._drop = ImageDrop(
                "Choose images",
                "Or drop them here: .jpg, .png or .webp, each with a caption in a .txt file of the "
                "same name, as files, folders or .zip. They are added to those that are here.",
                ",".join(ACCEPTED), self._receive, self._received,
            )  # fmt: skip
        self._messages.set_visibility(False)

    @property
    def _draft(self) -> Draft:
        return self._opened.draft

    @property
    def has_images(self) -> bool:
        """Whether the job has images: here, or in a source elsewhere."""
        return self._draft.dataset is not None or bool(self._opened.images)

    def rebuild(self) -> None:
        """Offer the sources of the training type."""
        control = self._draft.control(f"{self._draft.dataset_path}.type")
        sources = control.choices if control else ()
        source = self._source()
        if source != _UPLOAD and source not in sources:
            self._draft.dataset = None
            source = _UPLOAD
        self._source_box.clear()
        with self._source_box:
            choices = [Choice(_UPLOAD, "Upload here")]
            choices += [Choice(source, _SOURCE_NAMES.get(source, source)) for source in sources]
            Field("Source", "choice", source, self._choose_source, choices=choices)
        self._show_source(source)
        self._report.show()

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
            self._drop.run_method("focus")

    async def check_if_stale(self) -> None:
        """Check the images if they or the options have changed."""
        if self.images.is_stale:
            await self.check()

    async def check(self) -> None:
        """Check the images, and show the report."""
        if self._opened.images or not self.images.is_used:
            self._report.show_progress("Checking the images…")
        if self.images.is_used:
            self._show_images()
            await self.images.make_thumbnails()
            self._show_images()
        await self.images.check()
        self._show_result()

    def offer_check(self) -> None:
        """Show that the report is about other options."""
        self._report.offer_check()

    async def open_images(self) -> None:
        """Show the images that the draft has, or copy those of an earlier job."""
        await self.images.list_images()
        if not self.images.is_used and self._source() == _UPLOAD:
            self._report.show_progress("Loading the images of that job…")
            await self.images.find_former()
        if self._opened.images:
            await (self.check() if self.images.is_stale else self._show_again())
        else:
            self._show_result()

    async def upload(self) -> UploadView | None:
        """Upload the images that are here; return None, and show why, if that failed."""
        self._report.show_progress("Uploading the images…")
        try:
            upload = await self.images.upload(f"{self._draft.name}.zip")
        except (ConsoleError, JobError, OSError) as error:
            self.images.message = f"The upload failed: {error}"
            self._show_result()
            return None
        self._report.show()
        return upload

    async def _show_again(self) -> None:
        await self.images.make_thumbnails()
        self._show_result()

    def _show_result(self) -> None:
        notes = self.images.take_notes()
        self._show_messages([*notes, *filter(None, [self.images.message])])
        self._show_images()
        self._report.show()
        self._on_changed()

    async def _receive(self, files: list[FileUpload]) -> None:
        await self.images.receive(files)
        self._show_images()

    async def _received(self, refused: list[str]) -> None:
        self.images.note_refused(refused)
        await self.check()

    def _add_writer(self, frame: Frame, services: Services) -> None:
        async def note_written(replaced: dict[str, str | None]) -> None:
            await self._tools.note_change(replaced)

        self._writer = CaptionWriter(frame, services, self._opened, self.images, note_written)

    def _show_images(self) -> None:
        self._gallery.show()
        self._tools.show()
        self._writer.show()

    async def _edited(self) -> None:
        """Show captions that were changed together, and check them."""
        self._gallery.show_captions()
        await self.check()

    async def _remove(self, name: str) -> None:
        await self.images.remove(name)
        self._show_images()
        self._check_soon()

    async def _write_caption(self, name: str, caption: str) -> None:
        await self.images.write_caption(name, caption)
        self._check_soon()

    def _check_soon(self) -> None:
        """Check again after an edit, unless another one follows."""
        self._report.offer_check()
        self._edits += 1
        edits = self._edits

        async def check_unless_edited() -> None:
            await asyncio.sleep(_CHECK_DELAY_S)
            if edits == self._edits and self.images.is_stale:
                await self.check()

        background_tasks.create(check_unless_edited(), name="check edited images")

    def _show_messages(self, lines: list[str]) -> None:
        self._messages.update_text("\n".join(lines[:_MAX_MESSAGES]))
        self._messages.set_visibility(bool(lines))

    def _source(self) -> str:
        dataset = self._draft.dataset
        if dataset is None:
            return _UPLOAD
        # Loose files have no masks: the images of a job with masks are used as they are.
        is_former = str(dataset.get("archive", "")).startswith("upload:")
        return _UPLOAD if is_former and not self._draft.value("use_masks") else dataset["type"]

    async def _choose_source(self, source: str) -> None:
        self._draft.dataset = None if source == _UPLOAD else {"type": source}
        self._show_source(source)
        self._gallery.set_visibility(source == _UPLOAD)
        self._show_images()
        if source == _UPLOAD and self._opened.images:
            await self.check()
            return
        await self.images.check() if source == _UPLOAD else None
        self._report.show()
        if source != _UPLOAD:
            self._report.offer_check()
        self._on_changed()

    def _show_source(self, source: str) -> None:
        self._upload_box.set_visibility(source == _UPLOAD)
        self._source_fields.set_visibility(source != _UPLOAD)
        self._source_fields.clear()
        self._fields.clear()
        if source == _UPLOAD:
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
