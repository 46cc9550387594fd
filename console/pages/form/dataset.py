"""The images of a job: gathered here, or named by where they are; and what was found in them."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from nicegui.elements.upload_files import FileUpload

from console.pages.field import Choice, Field
from console.pages.form.controls import Kind
from console.pages.form.draft import Draft
from console.pages.form.draft_images import Images
from console.pages.form.drafts import Begun
from console.pages.form.image_collection import ACCEPTED, NotAddedError
from console.pages.form.image_drop import ImageDrop
from console.pages.form.report import Report
from console.pages.layout import Frame
from console.pages.markup import Tag, panel
from console.services.services import Services

_HERE = "here"
_PLACE_NAMES = {
    "IMAGE_CAPTION_DIR_DATASET": "A folder, with captions",
    "IMAGE_DIR_DATASET": "A folder, without captions",
    "IMAGE_CAPTION_JSONL_DATASET": "A JSONL file",
    "HF_HUB_IMAGE_CAPTION_DATASET": "Hugging Face Hub",
    "ARCHIVE": "An archive",
}


class DatasetPart:
    """The last part of the form.

    Args:
        frame: The page around it.
        service: Takes uploads and checks them.
        begun: What is filled in.
        on_changed: Called when the dataset is another one.
    """

    def __init__(
        self, frame: Frame, services: Services, begun: Begun, on_changed: Callable[[], None]
    ) -> None:
        self._begun, self._on_changed = begun, on_changed
        self._fields: dict[str, Field] = {}
        self._errors: Mapping[str, str] = {}
        self._rejected: list[str] = []
        self.images = Images(frame, services, begun)
        hint = "Ten to fifty good ones do for a subject or a style."
        with panel("Images", hint), Tag("div", classes="stack"):
            self._place_box = Tag("div", style="max-width: 320px")
            self._here = Tag("div")
            self._elsewhere = Tag("div", classes="grid-2")
            self._problem = Tag("p", "", "fault", role="alert")
            self._told = Tag("p", "", "note note-warning pre-line small", role="status")
            with Tag("div", classes="stack-small"):
                self._report = Report(frame, begun, self._edited, self.check)
        with self._here:
            accept = ",".join(ACCEPTED)
            self._drop = ImageDrop(
                "Choose images",
                "Or drop them here: .jpg, .png, .webp, each with its caption in a .txt of the same "
                "name. Or one .zip of all that.",
                accept, self._take, self._taken,
            )  # fmt: skip
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
        self._problem.say("; ".join(here))

    def focus(self) -> None:
        """Bring it into view."""
        if self._fields:
            next(iter(self._fields.values())).focus()
        else:
            self._drop.run_method("focus")

    async def settle(self) -> None:
        """Send and check what is not yet, or not as it is now."""
        if self.images.is_stale:
            await self.check()

    async def check(self) -> None:
        """Send the images, and show what is found in them."""
        self._report.busy()
        await self.images.update()
        self._tell([self.images.message] if self.images.message else [])
        self._report.show()
        self._on_changed()

    def offer_check(self) -> None:
        """Say that what was found is of another job by now."""
        self._report.offer_check()

    async def find(self) -> None:
        """Show the images that an earlier job had."""
        await self.images.find()
        self._tell([self.images.message] if self.images.message else [])
        self._report.show()
        self._on_changed()

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
        rejected = [f"Not taken: {it}" for it in self._rejected]
        self._rejected.clear()
        self.images.edited()
        await self.check()
        if rejected:
            self._tell(rejected)

    async def _edited(self, *, at_once: bool) -> None:
        """An image was removed, or a caption written."""
        self.images.edited()
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

    async def _choose_place(self, place: str) -> None:
        upload = self._begun.upload
        self._begun.listed, self._begun.checked = (), None
        if place != _HERE:
            self._draft.dataset = {"type": place}
        elif upload is not None:
            self._draft.dataset = {"type": "ARCHIVE", "archive": upload.source}
        else:
            self._draft.dataset = None
        self._show_place(place)
        if self._draft.dataset is not None and place == _HERE:
            await self.check()
            return
        self._report.show()
        if place != _HERE:
            self._report.offer_check()
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
