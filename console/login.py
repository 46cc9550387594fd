"""Login of browsers: a browser sends its key once and gets a cookie for a session.

Knows sessions and where they may be used from; the page with the form is in ``pages/``.
"""

import secrets
import time
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse

from console.services.rate_limiter import WrongKeys
from console.services.shares import AccountCache
from tasks.api_keys import ApiKeys, Caller, digest_of

COOKIE = "training_session"
SESSION_TTL_S = 12 * 3600
# Of an account; its oldest one ends first.
_MAX_SESSIONS = 200


class Sessions:
    """Sessions of this process. They end with it, and when their key is revoked.

    Args:
        api_keys: The API keys.
    """

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys
        self._open: AccountCache[tuple[str, float]] = AccountCache(_MAX_SESSIONS)

    def start(self, key: str) -> str | None:
        """Start a session and return its cookie; None for an unknown key."""
        caller = self._api_keys.find(key)
        if caller is None:
            return None
        cookie = secrets.token_urlsafe(32)
        session = digest_of(key), time.monotonic() + SESSION_TTL_S
        self._open.add(caller.account, digest_of(cookie), session)
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
            self._open.pop(digest_of(cookie))


def login_routes(sessions: Sessions, wrong_keys: WrongKeys, base_url: str) -> APIRouter:
    """Return the routes ``POST /login``, with the form field ``key``, and ``POST /logout``.

    Both answer with a redirect: to the page that ``next`` names, or the first one, or back to
    ``/login?wrong=1``.

    Args:
        sessions: The sessions.
        wrong_keys: Counts wrong keys.
        base_url: Address of the console in a browser.
    """
    router = APIRouter(include_in_schema=False)

    @router.post("/login")
    async def login(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        target = safe_target(request.query_params.get("next", ""))
        query = "" if target == "/" else f"&next={quote(target, safe='')}"
        refused = RedirectResponse(f"{root}/login?wrong=1{query}", 303)
        if not is_same_origin(request):
            return refused
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        cookie = sessions.start(form.get("key", [""])[0].strip())
        if cookie is None:
            wrong_keys.count(address_of(request))
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


def address_of(request: HTTPConnection) -> str:
    """Return the address that a request comes from."""
    return request.client.host if request.client else ""


def is_same_origin(request: HTTPConnection) -> bool:
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
