"""The pictures of a job: gathered here, or named by where they are; and what was found in them."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from nicegui.elements.upload_files import FileUpload

from console.errors import ConsoleError, NotFoundError
from console.pages.collection import ACCEPTED, NotAddedError
from console.pages.controls import Kind
from console.pages.draft import Draft
from console.pages.drafts import Begun
from console.pages.field import Choice, Field
from console.pages.layout import Frame
from console.pages.markup import Tag, panel
from console.pages.picture_drop import PictureDrop
from console.pages.report import Report
from console.service import Service
from console.views import DataSetView, PictureView, UploadView
from tasks.errors import InvalidJobError, JobError

_HERE = "here"
_PLACE_NAMES = {
    "IMAGE_CAPTION_DIR_DATASET": "A folder, with captions",
    "IMAGE_DIR_DATASET": "A folder, without captions",
    "IMAGE_CAPTION_JSONL_DATASET": "A JSONL file",
    "HF_HUB_IMAGE_CAPTION_DATASET": "Hugging Face Hub",
    "ARCHIVE": "An archive",
}


class DataSetPart:
    """The last part of the form.

    Args:
        frame: The page around it.
        service: Takes uploads and checks them.
        begun: What is filled in.
        on_changed: Called when the data set is another one.
    """

    def __init__(
        self, frame: Frame, service: Service, begun: Begun, on_changed: Callable[[], None]
    ) -> None:
        self._frame, self._service, self._begun = frame, service, begun
        self._on_changed = on_changed
        self._fields: dict[str, Field] = {}
        self._errors: Mapping[str, str] = {}
        self._rejected: list[str] = []
        self._is_stale = False
        with panel("Pictures", "Ten to fifty good ones do for a subject or a style."):
            self._place_box = Tag("div", style="max-width: 320px; margin-bottom: 16px")
            self._here = Tag("div", classes="stack")
            self._elsewhere = Tag("div", classes="grid-2")
            self._fault = Tag("p", "", "fault", role="alert")
        with self._here:
            accept = ",".join(ACCEPTED)
            self._drop = PictureDrop(
                "Choose pictures",
                "Or drop them here: .jpg, .png, .webp, each with its caption in a .txt of the same "
                "name. Or one .zip of all that.",
                accept, self._take, self._taken,
            )  # fmt: skip
            self._told = Tag("p", "", "note note-warning pre-line small", role="status")
            self._report = Report(frame, service, begun, self._edited, self.check)
        self._told.set_visibility(False)

    @property
    def _draft(self) -> Draft:
        return self._begun.draft

    def rebuild(self) -> None:
        """Offer the places that the training type knows."""
        known = self._draft.control(f"{self._draft.dataset_path}.type")
        kinds = known.choices if known else ()
        place = self._place()
        if place != _HERE and place not in kinds:
            self._draft.dataset = None
            place = _HERE
        self._place_box.clear()
        with self._place_box:
            choices = [Choice(_HERE, "Upload them here")]
            choices += [Choice(it, _PLACE_NAMES.get(it, it)) for it in kinds]
            Field("Where they are", "choice", place, self._choose_place, choices=choices)
        self._show_place(place)
        self._report.show()

    def mark(self, errors: Mapping[str, str]) -> None:
        """Show what is wrong, beside the fields where there are some."""
        self._errors = errors
        folder = self._draft.dataset_path
        for name, field in self._fields.items():
            field.flag(errors.get(f"{folder}.{name}", ""))
        here = [text for path, text in errors.items() if self._is_here(path)]
        self._fault.say("; ".join(here))

    def focus(self) -> None:
        """Bring it into view."""
        self._drop.run_method("$el.scrollIntoView")

    async def settle(self) -> None:
        """Send what is gathered, if that is not done yet."""
        if self._is_stale:
            await self.check()

    async def check(self) -> None:
        """Send the pictures, and show what is found in them."""
        self._is_stale = False
        begun = self._begun
        if begun.collection.is_empty:
            begun.upload, begun.listed, begun.checked = None, (), None
            self._draft.dataset = None
        else:
            self._report.busy(True)
            try:
                await self._send()
            except (ConsoleError, JobError, OSError) as error:
                self._tell([f"The pictures could not be sent: {error}"])
            finally:
                self._report.busy(False)
        self._report.show()
        self._on_changed()

    async def _send(self) -> None:
        begun = self._begun
        packed = await asyncio.to_thread(begun.collection.pack)
        name = begun.collection.archive or f"{self._draft.name}.zip"
        former = begun.upload
        begun.upload = await self._service.put_upload(self._frame.account, name, packed)
        self._draft.dataset = {"type": "ARCHIVE", "archive": begun.upload.source}
        if former is not None and former.id != begun.upload.id:
            await self._service.delete_upload(self._frame.account, former.id)
        begun.listed, begun.checked = await asyncio.gather(self._list(begun.upload), self._check())

    async def _list(self, upload: UploadView) -> tuple[PictureView, ...]:
        try:
            return await self._service.pictures(self._frame.account, upload.id)
        except NotFoundError as error:
            self._tell([f"{upload.name}: {error}"])
            return ()

    async def _check(self) -> DataSetView | None:
        try:
            document = self._draft.document()
            preview = await self._service.preview(self._frame.account, document)
        except InvalidJobError:
            # Another part of the form is to be mended first; that is told beside it.
            return None
        if preview.data_set is None and preview.error is not None:
            self._tell([preview.error.message])
        return preview.data_set

    async def _take(self, file: FileUpload) -> None:
        scratch = self._begun.collection.scratch
        scratch.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=scratch, delete=False) as kept:
            path = Path(kept.name)
        try:
            await file.save(path)
            await asyncio.to_thread(self._begun.collection.add, file.name, path)
        except NotAddedError as error:
            self._rejected.append(str(error))
        finally:
            path.unlink(missing_ok=True)

    async def _taken(self) -> None:
        self._tell([f"Not taken: {it}" for it in self._rejected])
        self._rejected.clear()
        await self.check()

    async def _edited(self, *, at_once: bool) -> None:
        """A picture was removed, or a caption written."""
        self._is_stale = True
        if at_once:
            await self.check()
        else:
            self._report.offer_check()

    def _tell(self, lines: list[str]) -> None:
        self._told.say("\n".join(lines[:20]))
        self._told.set_visibility(bool(lines))

    def _place(self) -> str:
        dataset = self._draft.dataset
        if dataset is None or str(dataset.get("archive", "")).startswith("upload:"):
            return _HERE
        return str(dataset.get("type"))

    def _choose_place(self, place: str) -> None:
        upload = self._begun.upload
        if place != _HERE:
            self._draft.dataset = {"type": place}
        elif upload is not None:
            self._draft.dataset = {"type": "ARCHIVE", "archive": upload.source}
        else:
            self._draft.dataset = None
        self._show_place(place)
        self._on_changed()

    def _show_place(self, place: str) -> None:
        self._here.set_visibility(place == _HERE)
        self._elsewhere.set_visibility(place != _HERE)
        self._elsewhere.clear()
        self._fields.clear()
        if place == _HERE:
            return
        folder = self._draft.dataset_path
        with self._elsewhere:
            for control in self._draft.dataset_controls(place):
                name = control.path.removeprefix(f"{folder}.")
                kind = str(
                    control.kind if control.choices or control.kind != Kind.CHOICE else "text"
                )
                value = (self._draft.dataset or {}).get(name, control.default)
                self._fields[name] = Field(
                    name, kind, control.show(value), partial(self._give, name), help=control.help
                )

    def _give(self, name: str, typed: Any) -> None:
        dataset = self._draft.dataset
        if dataset is None:
            return
        place = str(dataset["type"])
        control = next(
            it for it in self._draft.dataset_controls(place) if it.path.endswith(f".{name}")
        )
        value = control.read(typed)
        if value == control.default and not control.required:
            dataset.pop(name, None)
        else:
            dataset[name] = value
        self._on_changed()

    def _is_here(self, path: str) -> bool:
        folder = self._draft.dataset_path
        return path == folder or (
            path.startswith(f"{folder}.") and path.removeprefix(f"{folder}.") not in self._fields
        )
