"""Security headers of every response, and the host names that the console answers to."""

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
_WRONG_HOST = "this host name is not served here; TRAINING_CONSOLE_URL sets it\n"
_API_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
# NiceGUI's pages start with an inline script and compile their templates in the browser.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class SecurityHeaders:
    """Middleware that checks the host of each request and adds security headers to each response.

    On a loopback address the console answers to this machine's names and to the host of
    TRAINING_CONSOLE_URL only. That prevents DNS rebinding: another site's name that was made to
    point here is refused.

    Args:
        app: The application.
        settings: The console's settings.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._hosts = app, _allowed_hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not self.is_allowed(dict(scope["headers"]).get(b"host", b"")):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            refused = PlainTextResponse(_WRONG_HOST, 421)
            await refused(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_api = path == API or path.startswith(f"{API}/")

        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_ALWAYS)
                headers["Content-Security-Policy"] = _API_POLICY if is_api else _PAGE_POLICY
                rate_limit = state.get("rate_limit")
                if rate_limit is not None:
                    headers.update(rate_limit.headers)
                if is_api:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def is_allowed(self, host: bytes) -> bool:
        """Return whether the console answers to a ``Host`` header."""
        if self._hosts is None:
            return True
        try:
            return urlsplit(f"//{host.decode('latin-1')}").hostname in self._hosts
        except ValueError:
            return False


def _allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """Return the host names that the console answers to; None for any."""
    try:
        is_local = ip_address(settings.console_address).is_loopback
    except ValueError:
        is_local = settings.console_address == "localhost"
    if not is_local:
        return None
    proxy = urlsplit(settings.console_url or "").hostname
    local = {"localhost", "127.0.0.1", "::1", settings.console_address}
    return frozenset(local | ({proxy} if proxy else set()))
