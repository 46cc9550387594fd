"""Logging in: a browser shows a key once, and has a cookie from then on."""

from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from console.api.access import is_same_origin
from console.api.limits import MOST_BODY_BYTES, RateLimiter
from console.services.service import Service
from console.services.sessions import COOKIE, LIFE_S

# A key has 256 bits and is not found by trying; this keeps those who try from taking our time.
_TRIES_A_MINUTE = 60


def login_routes(service: Service) -> APIRouter:
    """``POST /login`` with the form field ``key``, and ``POST /logout``.

    Both answer with a redirect: to the page that ``next`` names or the first
    one, or back to ``/login?wrong=1``.
    """
    router = APIRouter(include_in_schema=False)
    limiter = RateLimiter(_TRIES_A_MINUTE)

    @router.post("/login")
    async def login(request: Request) -> Response:
        home = request.scope.get("root_path", "")
        target = inside(request.query_params.get("next", ""))
        back = "" if target == "/" else f"&next={quote(target, safe='')}"
        again = f"{home}/login?wrong=1{back}"
        who = request.client.host if request.client else ""
        if limiter.take(who).retry_after_s or not is_same_origin(request):
            return RedirectResponse(again, 303)
        cookie = service.sessions.begin(await _key_in(request))
        if cookie is None:
            return RedirectResponse(again, 303)
        answer = RedirectResponse(f"{home}{target}", 303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=LIFE_S,
            path=f"{home}/",
            httponly=True,
            samesite="strict",
            secure=service.settings.console_base_url.startswith("https://"),
        )
        return answer

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        home = request.scope.get("root_path", "")
        if is_same_origin(request):
            service.sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse(f"{home}/login", 303)
        answer.delete_cookie(COOKIE, path=f"{home}/")
        return answer

    return router


def inside(target: str) -> str:
    """A path of the console's own; whatever leads elsewhere is its start."""
    parts = urlsplit(target)
    leads_out = parts.scheme or parts.netloc or "\\" in target or target.startswith("//")
    is_path = target.startswith("/") and target.isprintable() and not leads_out
    return target if is_path else "/"


async def _key_in(request: Request) -> str:
    """The key of a form."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY_BYTES:
            return ""
    fields = parse_qs(body.decode("utf-8", "replace"))
    return fields.get("key", [""])[0].strip()
