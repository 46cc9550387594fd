"""A place to drop images on."""

from collections.abc import Awaitable, Callable

from nicegui import ui
from nicegui.elements.upload_files import FileUpload


class ImageDrop(ui.upload, component="image_drop.js"):
    """Takes files by drag and drop or by a button, and hands over each as it comes.

    Args:
        label: The button's.
        hint: What can be dropped.
        accept: What can be chosen, by the ends of names.
        on_file: Takes a file.
        on_sent: Called once all that was dropped is there.
    """

    def __init__(
        self,
        label: str,
        hint: str,
        accept: str,
        on_file: Callable[[FileUpload], Awaitable[None]],
        on_sent: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(multiple=True, label=label)
        self.props.update(hint=hint, accept=accept)
        self._on_file = on_file
        self.on("sent", lambda _: on_sent(), [])

    async def handle_uploads(self, files: list[FileUpload]) -> None:
        """Hand over what has come; the answer to the browser waits for it."""
        with self.client:
            for file in files:
                await self._on_file(file)
