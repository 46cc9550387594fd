"""The drop area of the form, which receives images, folders and archives from a browser."""

from collections.abc import Awaitable, Callable

from nicegui import ui
from nicegui.elements.upload_files import FileUpload
from nicegui.events import GenericEventArguments

_MAX_REFUSED = 20


class ImageDrop(ui.upload, component="image_drop.js"):
    """Receives files by drag and drop or a button, and passes them on when they arrive.

    An image and its caption arrive together. Names are percent-encoded, with their folders.

    Args:
        label: Label of the button.
        hint: What to drop.
        accept: File name suffixes that can be chosen.
        on_files: Receives files.
        on_complete: Called after all dropped files have arrived, with names of those that the
            browser did not send, as none of them has an accepted suffix.
    """

    def __init__(
        self,
        label: str,
        hint: str,
        accept: str,
        on_files: Callable[[list[FileUpload]], Awaitable[None]],
        on_complete: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        super().__init__(multiple=True, label=label)
        self.props.update(hint=hint, accept=accept)
        self._on_files, self._on_complete = on_files, on_complete
        self.on("complete", self._completed)

    async def handle_uploads(self, files: list[FileUpload]) -> None:
        """Pass files on; the response to the browser waits for it."""
        with self.client:
            await self._on_files(files)

    async def _completed(self, event: GenericEventArguments) -> None:
        names = event.args if isinstance(event.args, list) else []
        refused = [name[:200] for name in names[:_MAX_REFUSED] if isinstance(name, str)]
        await self._on_complete(refused)
