"""The drop area of the form, which receives images from a browser."""

from collections.abc import Awaitable, Callable

from nicegui import ui
from nicegui.elements.upload_files import FileUpload


class ImageDrop(ui.upload, component="image_drop.js"):
    """Receives files by drag and drop or a button, and passes each on when it arrives.

    Args:
        label: Label of the button.
        hint: What to drop.
        accept: File name suffixes that can be chosen.
        on_file: Receives a file.
        on_complete: Called after all dropped files have arrived.
    """

    def __init__(
        self,
        label: str,
        hint: str,
        accept: str,
        on_file: Callable[[FileUpload], Awaitable[None]],
        on_complete: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(multiple=True, label=label)
        self.props.update(hint=hint, accept=accept)
        self._on_file = on_file
        self.on("complete", lambda _: on_complete(), [])

    async def handle_uploads(self, files: list[FileUpload]) -> None:
        """Pass files on; the response to the browser waits for it."""
        with self.client:
            for file in files:
                await self._on_file(file)
