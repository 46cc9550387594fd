"""The button that lets a model of the fleet write captions, with its progress."""

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import background_tasks

from console.errors import ConsoleError
from console.pages.elements import Tag, button
from console.pages.form.drafts import OpenDraft
from console.pages.form.working_copy import WorkingCopy
from console.pages.formatting import count
from console.pages.layout import Frame
from console.services.images.captioning import CaptionRunView
from console.services.services import Services
from console.views import UploadView
from tasks.access.api_keys import Caller, Scope
from tasks.errors import JobError

_INTERVAL_S = 1.0
_ENDED = ("done", "failed")


class CaptionWriter:
    """The button. Without a model in the fleet, there is none.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft with its images.
        images: The images.
        on_written: Called with the captions that were replaced, after some were written.
    """

    def __init__(
        self,
        frame: Frame,
        services: Services,
        opened: OpenDraft,
        images: WorkingCopy,
        on_written: Callable[[dict[str, str | None]], Awaitable[None]],
    ) -> None:
        self._frame, self._captioning = frame, services.captioning
        self._opened, self._images, self._on_written = opened, images, on_written
        self._run: CaptionRunView | None = None
        self._is_cancelled = False
        with Tag("div", classes="actions") as self._box:
            self._write = button("", "small")
            self._cancel = button("Cancel", "quiet small", aria_label="Cancel writing captions")
            self._status = Tag("p", "", "small", role="status")
        self._write.on("click", self._start)
        self._cancel.on("click", self._stop)
        self.show()

    def show(self) -> None:
        """Show what the model could write now."""
        self._box.set_visibility(self._captioning.is_available)
        lacking = len(self._names())
        if any(not image.caption for image in self._opened.images):
            self._write.update_text(f"Write captions for {count(lacking, 'image')}")
        else:
            self._write.update_text("Write all captions again")
        is_running = self._run is not None
        self._write.set_visibility(not is_running)
        self._cancel.set_visibility(is_running)

    def _names(self) -> list[str]:
        """Return the images without a caption; all if each has one."""
        readable = [image for image in self._opened.images if not image.error]
        lacking = [image.name for image in readable if not image.caption]
        return lacking or [image.name for image in readable]

    async def _start(self) -> None:
        names = self._names()
        if self._run is not None or not names:
            return
        caller = self._frame.allowed(Scope.UPLOADS)
        self._is_cancelled = False
        self._status.update_text("Uploading the images…")
        try:
            upload = await self._images.upload("captions.zip")
        except (ConsoleError, JobError, OSError) as error:
            self._status.update_text(f"The captions cannot be written: {error}")
            return
        try:
            self._run = await self._captioning.start(caller, upload.id, only=names)
        except (ConsoleError, JobError) as error:
            self._status.update_text(f"The captions cannot be written: {error}")
            await self._images.discard(upload)
            return
        self.show()
        background_tasks.create(self._follow(caller, upload, names), name="write captions")

    async def _stop(self) -> None:
        self._is_cancelled = True

    async def _follow(self, caller: Caller, upload: UploadView, names: list[str]) -> None:
        """Take over captions until the run ends, and remove it with its upload."""
        assert self._run is not None
        run = self._run
        replaced: dict[str, str | None] = {}
        before = {image.name: image.caption for image in self._opened.images}
        try:
            while True:
                self._status.update_text(_progress(run, len(names)))
                await self._take(run, before, replaced)
                if run.state in _ENDED or self._is_cancelled:
                    break
                await asyncio.sleep(_INTERVAL_S)
                run = await self._captioning.get(caller, run.id)
            self._status.update_text(_ending(run, names, len(replaced)))
        except (ConsoleError, JobError) as error:
            self._status.update_text(f"The captions cannot be written: {error}")
        finally:
            self._run = None
            await self._remove(caller, run, upload)
            self.show()
            if replaced:
                await self._on_written(replaced)

    async def _take(
        self,
        run: CaptionRunView,
        before: dict[str, str | None],
        replaced: dict[str, str | None],
    ) -> None:
        """Write new captions, but over none that the user has changed since the start."""
        now = {image.name: image.caption for image in self._opened.images}
        new: dict[str, str | None] = {
            name: caption
            for name, caption in run.captions.items()
            if name not in replaced and name in now and now[name] == before.get(name)
        }
        if new:
            replaced |= {name: before[name] for name in new}
            await self._images.write_captions(new)

    async def _remove(self, caller: Caller, run: CaptionRunView, upload: UploadView) -> None:
        try:
            await self._captioning.cancel(caller, run.id)
        except (ConsoleError, JobError) as error:
            self._images.message = f"The caption run could not be removed: {error}"
        await self._images.discard(upload)


def _ending(run: CaptionRunView, names: list[str], written: int) -> str:
    lines = [f"Wrote {count(written, 'caption')}."]
    lacking = sum(name not in run.captions for name in names)
    if run.state == "done" and lacking:
        lines.append(f"The model found no words for {count(lacking, 'image')}.")
    return " ".join([*lines, *filter(None, [run.error])])


def _progress(run: CaptionRunView, total: int) -> str:
    if run.state == "waiting":
        return run.waiting_reason or "Waiting for a free worker…"
    return f"Writing captions: {run.done} of {run.total or total}"
