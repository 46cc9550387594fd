"""Login of browsers: a key, or the token of a login link, starts a session, which a cookie names.

Knows sessions and where they may be used from; the page with the form is in ``pages/``.
"""

import secrets
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request, Response
from redis import Redis
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse

from console.services.keys import SESSIONS_PREFIX
from console.services.rate_limiter import WrongKeys
from console.services.shared_values import SharedValues, available
from console.services.threads import in_thread
from tasks.access.api_keys import ApiKeys, Caller, digest_of
from tasks.access.login_links import LoginLinks

COOKIE = "training_session"
SESSION_TTL_S = 12 * 3600
# Of an account; its oldest one ends first.
_MAX_SESSIONS = 200


class Sessions:
    """Sessions of browsers, which any console of a broker serves.

    They end when their key is revoked or expires. Methods that ask the broker block.

    Args:
        client: A connection to the broker.
        api_keys: The API keys.
    """

    def __init__(self, client: Redis, api_keys: ApiKeys) -> None:
        self._api_keys, self._links = api_keys, LoginLinks(client)
        self._sessions = SharedValues(client, SESSIONS_PREFIX, _MAX_SESSIONS, SESSION_TTL_S)
        # Of this process's open pages, by the digest of the cookie: the number of pages, and the
        # digest of the key; empty once the session has ended.
        self._of_pages: dict[str, tuple[int, str]] = {}

    def start(self, key: str) -> str | None:
        """Start a session and return its cookie; None for an unknown key.

        Raises:
            UnavailableError: The broker is unavailable.
        """
        caller = self._api_keys.find(key)
        return None if caller is None else self._start(caller, digest_of(key))

    def start_from_link(self, token: str) -> str | None:
        """Use up a login link, start a session and return its cookie; None for an unusable link.

        Raises:
            UnavailableError: The broker is unavailable.
        """
        with available():
            key_digest = self._links.redeem(token)
        caller = None if key_digest is None else self._api_keys.find_by_digest(key_digest)
        return None if caller is None else self._start(caller, str(key_digest))

    def find(self, cookie: str | None) -> Caller | None:
        """Return the caller of a session; None for an unknown or expired one.

        Raises:
            UnavailableError: The broker is unavailable.
        """
        if not cookie:
            return None
        session_id = digest_of(cookie)
        with available():
            session = self._sessions.get(session_id)
        key_digest = "" if session is None else str(session["key"])
        self._note(session_id, key_digest)
        return self._api_keys.find_by_digest(key_digest)

    def end(self, cookie: str | None) -> None:
        """End a session, in all consoles.

        Raises:
            UnavailableError: The broker is unavailable.
        """
        if cookie:
            with available():
                self._sessions.remove(digest_of(cookie))
            self._note(digest_of(cookie), "")

    def open_page(self, cookie: str) -> None:
        """Watch the session of an open page, after which ``of_page`` knows it."""
        session_id = digest_of(cookie)
        pages, key_digest = self._of_pages.get(session_id, (0, ""))
        self._of_pages[session_id] = pages + 1, key_digest

    def close_page(self, cookie: str) -> None:
        """End what ``open_page`` began."""
        session_id = digest_of(cookie)
        pages, key_digest = self._of_pages[session_id]
        self._of_pages[session_id] = pages - 1, key_digest
        if pages == 1:
            del self._of_pages[session_id]

    def of_page(self, cookie: str) -> Caller | None:
        """Return the caller of an open page's session, as of the last call of ``find``."""
        _, key_digest = self._of_pages.get(digest_of(cookie), (0, ""))
        return self._api_keys.find_by_digest(key_digest)

    def refresh(self) -> None:
        """End the sessions of open pages that another console has ended.

        Raises:
            UnavailableError: The broker is unavailable; the pages stay.
        """
        watched = list(self._of_pages)
        if watched:
            with available():
                existing = self._sessions.existing(watched)
            for session_id in set(watched) - existing:
                self._note(session_id, "")

    def _start(self, caller: Caller, key_digest: str) -> str:
        cookie = secrets.token_urlsafe(32)
        with available():
            self._sessions.put(caller.account, digest_of(cookie), {"key": key_digest})
        return cookie

    def _note(self, session_id: str, key_digest: str) -> None:
        if session_id in self._of_pages:
            self._of_pages[session_id] = self._of_pages[session_id][0], key_digest


def login_routes(sessions: Sessions, wrong_keys: WrongKeys, base_url: str) -> APIRouter:
    """Return the routes ``POST /login`` and ``POST /logout``.

    The form of the first has the field ``key``, or ``once`` with the token of a login link. Both
    answer with a redirect: to the page that ``next`` names, or the first one, or back to
    ``/login?wrong=key`` (or ``link``).

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
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        what = "link" if "once" in form else "key"
        refused = RedirectResponse(f"{root}/login?wrong={what}{query}", 303)
        if not is_same_origin(request):
            return refused
        if what == "link":
            cookie = await in_thread(sessions.start_from_link)(form["once"][0])
        else:
            cookie = await in_thread(sessions.start)(form.get("key", [""])[0].strip())
        if cookie is None:
            await wrong_keys.count(address_of(request))
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
            await in_thread(sessions.end)(request.cookies.get(COOKIE))
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
