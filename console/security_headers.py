"""What every answer of the console carries, and which hosts may be asked for."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.settings.settings import Settings

API = "/v1"

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_OF_API = "default-src 'none'; frame-ancestors 'none'; sandbox"
# NiceGUI's pages start with a script of their own, and their templates are compiled in the browser.
_OF_PAGES = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class Guard:
    """Looks at each request before all else.

    On a loopback address, only this machine's names and the one of TRAINING_CONSOLE_URL may be
    asked for: a page of another site whose name was made to point here gets nothing.

    Args:
        app: What is asked else.
        settings: The console's.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._hosts = app, _hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not self._is_ours(dict(scope["headers"]).get(b"host", b"")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            refused = PlainTextResponse("this host is not served here\n", 421)
            await refused(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_api = path == API or path.startswith(f"{API}/")

        state = scope.setdefault("state", {})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_ALWAYS)
                headers["Content-Security-Policy"] = _OF_API if is_api else _OF_PAGES
                allowance = state.get("allowance")
                if allowance is not None:
                    headers.update(allowance.headers)
                if is_api:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, guarded)

    def _is_ours(self, host: bytes) -> bool:
        if self._hosts is None:
            return True
        try:
            return urlsplit(f"//{host.decode('latin-1')}").hostname in self._hosts
        except ValueError:
            return False


def _hosts(settings: Settings) -> frozenset[str] | None:
    """The names that may be asked for; None for all."""
    try:
        is_local = ip_address(settings.console_address).is_loopback
    except ValueError:
        is_local = settings.console_address == "localhost"
    if not is_local:
        return None
    named = urlsplit(settings.console_url or "").hostname
    own = {"localhost", "127.0.0.1", "::1", settings.console_address}
    return frozenset(own | ({named} if named else set()))
