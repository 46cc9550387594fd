"""Login of browsers: a browser sends its key once and gets a cookie for a session.

Knows sessions and where they may be used from; the page with the form is in ``pages/``.
"""

import secrets
import time
from collections import OrderedDict
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from console.services.rate_limiter import RateLimiter
from tasks.api_keys import ApiKeys, Caller, digest_of

COOKIE = "training_session"
SESSION_TTL_S = 12 * 3600
_MAX_SESSIONS = 10_000
_MAX_FORM_BYTES = 2**20


class Sessions:
    """Sessions of this process. They end with it, and when their key is revoked.

    Args:
        api_keys: The API keys.
    """

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys
        self._open: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def start(self, key: str) -> str | None:
        """Start a session and return its cookie; None for an unknown key."""
        if self._api_keys.find(key) is None:
            return None
        cookie = secrets.token_urlsafe(32)
        self._open[digest_of(cookie)] = (digest_of(key), time.monotonic() + SESSION_TTL_S)
        if len(self._open) > _MAX_SESSIONS:
            self._open.popitem(last=False)
        return cookie

    def find(self, cookie: str | None) -> Caller | None:
        """Return the caller of a session; None for an unknown or expired one."""
        session = self._open.get(digest_of(cookie)) if cookie else None
        if session is None:
            return None
        key_digest, expires_at = session
        is_open = time.monotonic() < expires_at
        return self._api_keys.find_by_digest(key_digest) if is_open else None

    def end(self, cookie: str | None) -> None:
        """End a session."""
        if cookie:
            self._open.pop(digest_of(cookie), None)


def login_routes(sessions: Sessions, limiter: RateLimiter, base_url: str) -> APIRouter:
    """Return the routes ``POST /login``, with the form field ``key``, and ``POST /logout``.

    Both answer with a redirect: to the page that ``next`` names, or the first one, or back to
    ``/login?wrong=1``.

    Args:
        sessions: The sessions.
        limiter: Limit of logins per address. A key of 256 bits cannot be guessed; the limit keeps
            such attempts from using up this process.
        base_url: Address of the console in a browser.
    """
    router = APIRouter(include_in_schema=False)

    @router.post("/login")
    async def login(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        target = safe_target(request.query_params.get("next", ""))
        query = "" if target == "/" else f"&next={quote(target, safe='')}"
        refused = RedirectResponse(f"{root}/login?wrong=1{query}", 303)
        address = request.client.host if request.client else ""
        status = await limiter.take(address)
        if status.retry_after_s or not is_same_origin(request):
            return refused
        cookie = sessions.start(await _key_in(request))
        if cookie is None:
            return refused
        response = RedirectResponse(f"{root}{target}", 303)
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=SESSION_TTL_S,
            path=f"{root}/",
            httponly=True,
            samesite="strict",
            secure=base_url.startswith("https://"),
        )
        return response

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        if is_same_origin(request):
            sessions.end(request.cookies.get(COOKIE))
        response = RedirectResponse(f"{root}/login", 303)
        response.delete_cookie(COOKIE, path=f"{root}/")
        return response

    return router


def is_same_origin(request: Request) -> bool:
    """Return whether a browser reports that a page of this console makes the request."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc == request.headers.get("host")


def safe_target(target: str) -> str:
    """Return a path of this console; ``/`` for a target that leads elsewhere."""
    parts = urlsplit(target)
    leads_out = parts.scheme or parts.netloc or "\\" in target or target.startswith("//")
    is_path = target.startswith("/") and target.isprintable() and not leads_out
    return target if is_path else "/"


async def _key_in(request: Request) -> str:
    """Return the key in a form; empty if it has none or is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            return ""
    fields = parse_qs(body.decode("utf-8", "replace"))
    return fields.get("key", [""])[0].strip()
