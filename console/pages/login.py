"""The way in: a plain form that needs no script, and the way out."""

from html import escape
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from console.pages.layout import THEME_SCRIPT, prefix_of, style_sheet
from console.service import Service
from console.sessions import COOKIE, LIFE_S

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in · training-worker</title>
<link rel="icon" href="data:,">
<script>{script}</script>
<link rel="stylesheet" href="{style}">
</head>
<body>
<main class="nicegui-content">
<div class="login panel">
<div class="brand">training-worker</div>
<h1>Log in</h1>
<form method="post" action="{action}">
<div class="field{look}">
<label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 aria-describedby="help{described}"{invalid}>
{fault}<p class="help" id="help">An operator makes one with <code>training-worker keys add</code>.
On the machine of <code>training-worker up</code>, one lies in the file <code>console-key</code> of
<code>TRAINING_HOME</code>.</p>
</div>
<button class="btn btn-primary" type="submit">Log in</button>
</form>
</div>
</main>
</body>
</html>
"""
_WRONG = (
    '<p class="fault" id="fault" role="alert">This key is nobody\'s. Look for a missing part.</p>\n'
)


def add_login(app: FastAPI, service: Service) -> None:
    """Put the way in and the way out on the application."""

    @app.get("/login", include_in_schema=False)
    async def show(request: Request) -> Response:
        return _page(request, is_wrong=False)

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        form = await request.form(max_files=0, max_fields=4, max_part_size=4096)
        cookie = service.sessions.begin(str(form.get("key", "")).strip())
        if cookie is None:
            return _page(request, is_wrong=True)
        target = _inside(request.query_params.get("next", ""))
        answer = RedirectResponse(f"{prefix_of(request)}{target}", status_code=303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=LIFE_S,
            httponly=True,
            samesite="strict",
            secure=_is_encrypted(request, service),
            path=f"{prefix_of(request)}/",
        )
        return answer

    @app.post("/logout", include_in_schema=False)
    async def log_out(request: Request) -> Response:
        service.sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse(f"{prefix_of(request)}/login", status_code=303)
        answer.delete_cookie(COOKIE, path=f"{prefix_of(request)}/")
        return answer


def login_address(request: Request) -> str:
    """Where to log in, to come back to what was asked for."""
    wanted = request.url.path.removeprefix(prefix_of(request))
    if request.url.query:
        wanted += f"?{request.url.query}"
    return f"{prefix_of(request)}/login?next={quote(wanted, safe='')}"


def _page(request: Request, *, is_wrong: bool) -> HTMLResponse:
    target = _inside(request.query_params.get("next", ""))
    prefix = prefix_of(request)
    page = _PAGE.format(
        script=THEME_SCRIPT,
        style=escape(f"{prefix}{style_sheet()}"),
        action=escape(f"{prefix}/login?next={quote(target, safe='')}"),
        look=" field-wrong" if is_wrong else "",
        described=" fault" if is_wrong else "",
        invalid=' aria-invalid="true"' if is_wrong else "",
        fault=_WRONG if is_wrong else "",
    )
    return HTMLResponse(page, status_code=401 if is_wrong else 200)


def _inside(target: str) -> str:
    """A path of the console's; whatever leads elsewhere is its start."""
    parts = urlsplit(target)
    leads_out = parts.scheme or parts.netloc or "\\" in target or target.startswith("//")
    is_path = target.startswith("/") and target.isprintable() and not leads_out
    return target if is_path else "/"


def _is_encrypted(request: Request, service: Service) -> bool:
    url = service.settings.console_url or str(request.url)
    return url.startswith("https://")
