"""Security headers of every response, and the host names that the console answers to."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.errors import ConsoleError, MisdirectedError
from tasks.hosts import is_allowed_host
from tasks.settings.settings import Settings

API = "/v1"

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
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

    It answers to IP addresses, ``localhost`` and configured names only. That prevents DNS
    rebinding: another site's name that was made to point here is refused.

    Args:
        app: The application.
        settings: The console's settings.
        refuse: Returns the response for a request that is refused, from its scope and path.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        refuse: Callable[[Scope, str, ConsoleError], ASGIApp],
    ) -> None:
        self._app, self._refuse = app, refuse
        self._host_names = {*settings.host_names, settings.console_address}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_api = path == API or path.startswith(f"{API}/")
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not is_allowed_host(host, self._host_names):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._refuse(scope, path, MisdirectedError())(scope, receive, send)
            return

        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_ALWAYS)
                # The API's own page sets a policy.
                headers.setdefault(
                    "Content-Security-Policy", _API_POLICY if is_api else _PAGE_POLICY
                )
                caller = state.get("caller")
                is_link = state.get("is_link", False)
                if caller is not None and caller.expires is not None and not is_link:
                    headers["API-Key-Expires"] = f"{caller.expires:%Y-%m-%dT%H:%M:%SZ}"
                rate_limit = state.get("rate_limit")
                if rate_limit is not None:
                    headers.update(rate_limit.headers)
                if is_api:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
