"""How much a page may send at once: it is kept on this machine's disk before it is looked at."""

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Where NiceGUI takes files.
_UPLOADS = "/_nicegui/client/"
# Names of files and what stands between them.
_MARGIN_BYTES = 2**20


class UploadLimit:
    """Refuses uploads of pages that are too long, before or while they come.

    Args:
        app: What is asked else.
        most_bytes: The most that one may take.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes + _MARGIN_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or _UPLOADS not in scope["path"]:
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self._most_bytes:
            await PlainTextResponse("too large\n", 413)(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most_bytes:
                raise HTTPException(413, "too large")
            return message

        await self._app(scope, counted, send)
