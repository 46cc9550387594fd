"""Images that the form receives from a browser: the drop area, and the limit of their size."""

from collections.abc import Awaitable, Callable

from nicegui import ui
from nicegui.elements.upload_files import FileUpload
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Path at which NiceGUI receives files.
_UPLOAD_PATH = "/_nicegui/client/"
# File names and the separators of a multipart body.
_OVERHEAD_BYTES = 2**20


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


class UploadLimit:
    """Middleware that refuses uploads of pages that are too large, before or while they arrive.

    Uploads are written to this machine's disk before they are checked.

    Args:
        app: The application.
        max_bytes: Maximum size of one upload.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes + _OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http" or _UPLOAD_PATH not in scope["path"]:
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            await PlainTextResponse("too large\n", 413)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, "too large")
            return message

        await self._app(scope, receive_counted, send)
