"""The gate in front of API and pages: what a request's headers decide.

It answers a request that may not pass before its body is read or a page is built, which costs
little; and it bounds what a request that may pass holds: its place among the account's, its body,
and the rate of a page's messages.
"""

import asyncio
import logging
import re
from contextlib import ExitStack, suppress

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from console.api.problems import problem_of
from console.errors import (
    ApiKeysUnavailableError,
    ConsoleError,
    ForbiddenError,
    InvalidLinkError,
    TooLargeError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)
from console.login import COOKIE, address_of, is_same_origin
from console.pages.form.gallery import THUMBNAILS
from console.pages.layout import text_answer
from console.pages.login_page import login_address
from console.security_headers import API
from console.services.services import Services
from console.services.shares import Share
from console.services.threads import current_account, in_thread
from tasks.access.api_keys import Caller
from tasks.errors import ApiKeysError

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**20
"""Maximum body of a request, other than of uploads: a job with long lists has some kilobytes."""
# The form of the login.
_MAX_BODY_BYTES_WITHOUT_KEY = 2**13
_TOO_LARGE = "the body of a request has at most {:,} bytes"
# Names and separators of a multipart body.
_OVERHEAD_BYTES = 2**20
_BODY_TIMEOUT_S = 60.0
# Of all accounts; requests without a key are one of them.
_MAX_REQUESTS = 1000

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_PAGE = re.compile(r"/(jobs(/[^/]+)?|compare|fleet|new|datasets(/[^/]+)?)?")
# Where NiceGUI receives the messages and files of pages.
_PAGE_UPLOADS = "/_nicegui/client/"
_OF_PAGES = ("/_nicegui_ws/", _PAGE_UPLOADS, f"{THUMBNAILS}/")
_UPLOADS = (
    *(f"{API}/uploads/", f"{API}/uploads:multipart", f"{API}/datasets:multipart"),
    *(f"{API}/datasets/", _PAGE_UPLOADS),
)
_HEALTH = f"{API}/health"
_FILE = re.compile(rf"{API}/jobs/([^/]+)/files/(.+)")
_OPEN_TO_ALL = (
    ("GET", _HEALTH),
    ("GET", f"{API}/openapi.json"),
    ("GET", f"{API}/docs"),
    ("OPTIONS", f"{API}/uploads"),
)


class Gate:
    """Middleware that lets requests pass or answers them.

    Args:
        app: The application.
        services: The console's services.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services
        self._requests = Share("requests", _MAX_REQUESTS, retry_after_s=1)
        self._upload_bytes = services.settings.upload_max_bytes + _OVERHEAD_BYTES
        # NiceGUI writes the files of pages to disk before the page takes them.
        self._page_bytes = Share(
            "bytes of files on their way", 4 * self._upload_bytes, always=self._upload_bytes
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        # NiceGUI would believe it from anyone; the prefix is that of TRAINING_CONSOLE_URL.
        headers = [it for it in scope["headers"] if it[0] != b"x-forwarded-prefix"]
        scope = {**scope, "headers": headers}
        request = HTTPConnection(scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        with ExitStack() as held:
            try:
                caller = await self._known_caller_of(request, path)
                account = "" if caller is None else caller.account
                current_account.set(account)
                if path != _HEALTH:
                    held.enter_context(self._requests.hold(account))
                if caller is not None:
                    await self._take_token(request, caller)
                if scope["type"] == "websocket":
                    name = "" if caller is None else caller.name
                    receive = self._at_allowed_rate(receive, request.cookies.get(COOKIE), name)
                else:
                    receive = self._bounded(scope, path, receive, account, held)
            except ConsoleError as error:
                await refusal(scope, path, error)(scope, receive, send)
                return
            # A sender that disconnects needs no answer, and is no error of the console.
            with suppress(ClientDisconnect):
                await self._app(scope, receive, send)

    async def _known_caller_of(self, request: HTTPConnection, path: str) -> Caller | None:
        try:
            return await self._caller_of(request, path)
        except ApiKeysError as error:
            logger.error("%s", error)
            raise ApiKeysUnavailableError from error

    async def _caller_of(self, request: HTTPConnection, path: str) -> Caller | None:
        """Return the caller of a request; None for a request that needs none.

        Raises:
            UnauthorizedError: The request has no valid key, session or signature.
            UnavailableError: The broker is unavailable, which has the sessions.
            ForbiddenError: A page of another site makes the request.
            TooManyError: The address sends wrong keys.
            ApiKeysError: The file of API keys cannot be read.
        """
        method = request.scope.get("method", "GET")
        is_api = _is_api(path)
        if not is_api and not _PAGE.fullmatch(path) and not path.startswith(_OF_PAGES):
            return None
        if (method, path) in _OPEN_TO_ALL:
            return None
        if is_api and "signature" in request.query_params:
            return await self._owner_of_link(request, method, path)
        if is_api and "authorization" in request.headers:
            return await self._owner_of_key(request)
        return await self._owner_of_session(request, method)

    async def _take_token(self, request: HTTPConnection, caller: Caller) -> None:
        """Count a request.

        Raises:
            TooManyError: The caller exceeds its rate limit.
        """
        is_link = getattr(request.state, "is_link", False)
        services = self._services
        limiter = services.link_limiter if is_link else services.api_limiter
        status = await limiter.take(caller.name)
        request.state.caller, request.state.rate_limit = caller, status
        if status.retry_after_s:
            raise TooManyError(f"more than {status.limit} requests a minute", status.retry_after_s)

    async def _owner_of_link(self, request: HTTPConnection, method: str, path: str) -> Caller:
        match, caller = _FILE.fullmatch(path), None
        request.state.is_link = True
        if match is not None and method == "GET":
            query = request.query_params
            caller = await self._services.links.find_caller(match[1], match[2], query)
        if caller is None:
            await self._services.wrong_keys.count(address_of(request))
            raise InvalidLinkError
        return caller

    async def _owner_of_key(self, request: HTTPConnection) -> Caller:
        scheme, _, key = request.headers["authorization"].partition(" ")
        api_keys, key = self._services.api_keys, key.strip() if scheme.lower() == "bearer" else ""
        caller = api_keys.find(key)
        if caller is None:
            await self._services.wrong_keys.count(address_of(request))
            raise UnauthorizedError(api_keys.why_refused(key))
        return caller

    async def _owner_of_session(self, request: HTTPConnection, method: str) -> Caller | None:
        caller = await in_thread(self._services.sessions.find)(request.cookies.get(COOKIE))
        is_socket = request.scope["type"] == "websocket"
        # NiceGUI lets the browser reload a page that it does not know, which leads to the login.
        if caller is None and not is_socket:
            raise UnauthorizedError("send an API key: Authorization: Bearer twk_...")
        if (is_socket or method not in _SAFE_METHODS) and not is_same_origin(request):
            raise ForbiddenError("pages of other sites may not change anything")
        return caller

    def _bounded(
        self, scope: Scope, path: str, receive: Receive, account: str, held: ExitStack
    ) -> Receive:
        """Return a ``receive`` that bounds a request's body.

        Raises:
            TooLargeError: The body is too large.
            TooManyError: The account has used up its share of files on their way.
        """
        is_upload = path.startswith(_UPLOADS)
        small_bytes = MAX_BODY_BYTES if account else _MAX_BODY_BYTES_WITHOUT_KEY
        max_bytes = self._upload_bytes if is_upload else small_bytes
        length = dict(scope["headers"]).get(b"content-length")
        if length is not None and not (_LENGTH.fullmatch(length) and int(length) <= max_bytes):
            raise TooLargeError(_TOO_LARGE.format(max_bytes))
        if path.startswith(_PAGE_UPLOADS):
            count = max_bytes if length is None else int(length)
            held.enter_context(self._page_bytes.hold(account, count))
        return _bounded_body(receive, max_bytes, is_upload=is_upload)

    def _at_allowed_rate(self, receive: Receive, cookie: str | None, name: str) -> Receive:
        """Delay the messages of pages that exceed a caller's rate limit.

        Before each message the page learns whether another console has ended its session.
        """

        async def receive_delayed() -> Message:
            message = await receive()
            while wait_s := self._services.api_limiter.local.take(name).retry_after_s:
                await asyncio.sleep(wait_s)
            with suppress(UnavailableError):
                await in_thread(self._services.sessions.find)(cookie)
            return message

        return receive_delayed


def refusal(scope: Scope, path: str, error: ConsoleError) -> ASGIApp:
    """Return the response for a request that is refused."""
    if scope["type"] == "websocket":
        return WebSocketClose(1008, error.message)
    if _is_api(path):
        return problem_of(error)
    if isinstance(error, UnauthorizedError) and _PAGE.fullmatch(path):
        return RedirectResponse(login_address(Request(scope)))
    return text_answer(error)


def _is_api(path: str) -> bool:
    return path == API or path.startswith(f"{API}/")


def _bounded_body(receive: Receive, max_bytes: int, *, is_upload: bool) -> Receive:
    """Return a ``receive`` that ends a body that is too large, or arrives too slowly."""
    clock = asyncio.get_running_loop().time
    received, is_complete, deadline = 0, False, clock() + _BODY_TIMEOUT_S

    async def receive_bounded() -> Message:
        nonlocal received, is_complete, deadline
        if is_complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the body of the request arrives too slowly") from error
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise HTTPException(413, _TOO_LARGE.format(max_bytes))
        is_complete = not message.get("more_body", False)
        if is_upload:
            # An upload may take hours, but no minute may pass without data.
            deadline = clock() + _BODY_TIMEOUT_S
        return message

    return receive_bounded
