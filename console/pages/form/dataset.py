"""The dataset of a job: images uploaded here or a source elsewhere, and the report on them."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from nicegui.elements.upload_files import FileUpload

from console.pages.elements import Choice, Field, Tag, panel
from console.pages.form.controls import Kind
from console.pages.form.draft import Draft
from console.pages.form.drafts import DraftImages, OpenDraft
from console.pages.form.image_collection import ACCEPTED, NotAddedError
from console.pages.form.image_upload import ImageDrop
from console.pages.form.report import Report
from console.pages.layout import Frame
from console.services.services import Services
from console.services.threads import in_thread

_UPLOAD = "here"
_SOURCE_NAMES = {
    "IMAGE_CAPTION_DIR_DATASET": "Folder with captions",
    "IMAGE_DIR_DATASET": "Folder without captions",
    "IMAGE_CAPTION_JSONL_DATASET": "JSONL file",
    "HF_HUB_IMAGE_CAPTION_DATASET": "Hugging Face Hub",
    "ARCHIVE": "Archive",
}
_MAX_MESSAGES = 20


class DatasetPart:
    """The last part of the form.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft.
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
        self._rejected: list[str] = []
        self.images = DraftImages(frame, services, opened, save)
        hint = "Ten to fifty good images are enough for a subject or a style."
        with panel("Images", hint), Tag("div", classes="stack"):
            self._source_box = Tag("div", classes="source-box")
            self._upload_box = Tag("div")
            self._source_fields = Tag("div", classes="grid-2")
            self._problem = Tag("p", "", "error", role="alert")
            self._messages = Tag("p", "", "note note-warning pre-line small", role="status")
            with Tag("div", classes="stack-small"):
                self._report = Report(frame, opened, self._edited, self.check)
        with self._upload_box:
            self._drop = ImageDrop(
                "Choose images",
                "Or drop them here: .jpg, .png or .webp, each with a caption in a .txt file of the "
                "same name. Or one .zip of them.",
                ",".join(ACCEPTED), self._receive, self._received,
            )  # fmt: skip
        self._messages.set_visibility(False)

    @property
    def _draft(self) -> Draft:
        return self._opened.draft

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
        """Upload and check the images if they or the options have changed."""
        if self.images.is_stale:
            await self.check()

    async def check(self) -> None:
        """Upload and check the images, and show the report."""
        self._report.show_checking()
        await self.images.update()
        self._show_result()

    def offer_check(self) -> None:
        """Show that the report is about other options."""
        self._report.offer_check()

    async def find_upload(self) -> None:
        """Show the images of an earlier job."""
        await self.images.find_upload()
        self._show_result()

    def _show_result(self) -> None:
        self._show_messages([self.images.message] if self.images.message else [])
        self._report.show()
        self._on_changed()

    async def _receive(self, file: FileUpload) -> None:
        scratch = self._opened.collection.scratch
        scratch.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=scratch, delete=False) as temporary:
            path = Path(temporary.name)
        try:
            await file.save(path)
            await in_thread(self._opened.collection.add)(file.name, path)
        except NotAddedError as error:
            self._rejected.append(str(error))
        finally:
            path.unlink(missing_ok=True)

    async def _received(self) -> None:
        rejected = [f"Not added: {reason}" for reason in self._rejected]
        self._rejected.clear()
        await self.images.mark_changed()
        await self.check()
        if rejected:
            self._show_messages(rejected)

    async def _edited(self, *, check_now: bool) -> None:
        await self.images.mark_changed()
        if check_now:
            await self.check()
        else:
            self._report.offer_check()

    def _show_messages(self, lines: list[str]) -> None:
        self._messages.update_text("\n".join(lines[:_MAX_MESSAGES]))
        self._messages.set_visibility(bool(lines))

    def _source(self) -> str:
        dataset = self._draft.dataset
        if dataset is None or str(dataset.get("archive", "")).startswith("upload:"):
            return _UPLOAD
        return str(dataset.get("type"))

    async def _choose_source(self, source: str) -> None:
        upload = self._opened.upload
        self._opened.images, self._opened.report = (), None
        if source != _UPLOAD:
            self._draft.dataset = {"type": source}
        elif upload is not None:
            self._draft.dataset = {"type": "ARCHIVE", "archive": upload.source}
        else:
            self._draft.dataset = None
        self._show_source(source)
        if self._draft.dataset is not None and source == _UPLOAD:
            await self.check()
            return
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
