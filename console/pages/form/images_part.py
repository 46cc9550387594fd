"""The images that are here: where they are dropped, the report on them, captions and tiles."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import background_tasks
from nicegui.elements.upload_files import FileUpload

from console.errors import ConsoleError
from console.pages.elements import Tag
from console.pages.form.caption_tools import CaptionTools
from console.pages.form.caption_writer import CaptionWriter
from console.pages.form.drafts import OpenDraft
from console.pages.form.gallery import Gallery
from console.pages.form.image_upload import ImageDrop
from console.pages.form.report import Report
from console.pages.form.working_copy import WorkingCopy
from console.pages.layout import Frame
from console.services.images.image_collection import ACCEPTED
from console.services.services import Services
from console.views import UploadView
from tasks.errors import JobError

_MAX_MESSAGES = 20
# Images are checked again after edits, once the user pauses for this long.
_CHECK_DELAY_S = 1.5


class ImagesPart:
    """The images of a draft.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft.
        save: Saves the draft.
        on_changed: Called after a check of the images.
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
        self._edits = 0
        self.copy = WorkingCopy(frame, services, opened, save)
        self._upload_box = Tag("div")
        self._messages = Tag("p", "", "note note-warning pre-line small", role="status")
        with Tag("div", classes="stack-small"):
            self._report = Report(frame, opened, self._remove, self.check)
        self._tools = CaptionTools(
            frame, opened, self.copy, lambda: self._add_writer(frame, services), self._edited
        )
        self._gallery = Gallery(frame, opened, self._remove, self._write_caption)
        with self._upload_box:
            self._drop = ImageDrop(
                "Choose images",
                "Or drop them here: .jpg, .png or .webp, and captions in .txt files of the same "
                "names, as files, folders or .zip. They are added to those that are here.",
                ",".join(ACCEPTED), self._receive, self._received,
            )  # fmt: skip
        self._messages.set_visibility(False)

    def set_visibility(self, visible: bool) -> None:
        """Show or hide the images; the report stays."""
        self._upload_box.set_visibility(visible)
        self._gallery.set_visibility(visible)
        self._show_images()

    def focus(self) -> None:
        """Scroll the drop area into view."""
        self._drop.run_method("focus")

    async def open(self, former: str = "") -> None:
        """Show the images that the draft has.

        Args:
            former: What is shown while the images of an earlier job are copied; empty to copy none.
        """
        await self.copy.list_images()
        if former:
            self._report.show_progress(former)
            await self.copy.find_former()
        if self._opened.images and self.copy.is_stale:
            await self.check()
            return
        if self._opened.images:
            self._gallery.show()
            await self.copy.make_thumbnails()
        self.show_result()

    async def check_if_stale(self) -> None:
        """Check the images if they or the options have changed."""
        if self.copy.is_stale:
            await self.check()

    async def check(self) -> None:
        """Check the images, and show the report."""
        if self._opened.images or not self.copy.is_used:
            self._report.show_progress("Checking the images…")
        if self.copy.is_used:
            self._show_images()
            await self.copy.make_thumbnails()
            self._show_images()
        await self.copy.check()
        self.show_result()

    def offer_check(self) -> None:
        """Show that the report is about other images or options."""
        self._report.offer_check()

    def forget_report(self) -> None:
        """Show no report."""
        self.copy.forget_report()
        self._report.show()

    async def upload(self, name: str) -> UploadView | None:
        """Upload the images; return None, and show why, if that failed."""
        self._report.show_progress("Uploading the images…")
        try:
            upload = await self.copy.upload(name)
        except (ConsoleError, JobError, OSError) as error:
            self.copy.message = f"The upload failed: {error}"
            self.show_result()
            return None
        self._report.show()
        return upload

    def show_result(self) -> None:
        """Show the report, the images, and what was not added."""
        notes = self.copy.take_notes()
        self.show_messages([*notes, *filter(None, [self.copy.message])])
        self._show_images()
        self._report.show()
        self._on_changed()

    def show_messages(self, lines: list[str]) -> None:
        """Show messages about the images."""
        self._messages.update_text("\n".join(lines[:_MAX_MESSAGES]))
        self._messages.set_visibility(bool(lines))

    def _add_writer(self, frame: Frame, services: Services) -> None:
        async def note_written(replaced: dict[str, str | None]) -> None:
            await self._tools.note_change(replaced)

        self._writer = CaptionWriter(frame, services, self._opened, self.copy, note_written)

    def _show_images(self) -> None:
        self._gallery.show()
        self._tools.show()
        self._writer.show()

    async def _receive(self, files: list[FileUpload]) -> None:
        await self.copy.receive(files)
        self._show_images()

    async def _received(self, refused: list[str]) -> None:
        self.copy.note_refused(refused)
        await self.check()

    async def _edited(self) -> None:
        """Show captions that were changed together, and check them."""
        self._gallery.show_captions()
        await self.check()

    async def _remove(self, name: str) -> None:
        await self.copy.remove(name)
        self._show_images()
        self._check_soon()

    async def _write_caption(self, name: str, caption: str) -> None:
        await self.copy.write_caption(name, caption)
        self._check_soon()

    def _check_soon(self) -> None:
        """Check again after an edit, unless another one follows."""
        self._report.offer_check()
        self._edits += 1
        edits = self._edits

        async def check_unless_edited() -> None:
            await asyncio.sleep(_CHECK_DELAY_S)
            if edits == self._edits and self.copy.is_stale:
                await self.check()

        background_tasks.create(check_unless_edited(), name="check edited images")
