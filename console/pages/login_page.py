"""Login page: a plain form that needs no script."""

from html import escape
from urllib.parse import quote

import nicegui
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from console.login import safe_target
from console.pages.layout import THEME_SCRIPT, prefix_of, style_sheet

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in · training-worker</title>
<link rel="icon" href="data:,">
<script>{script}</script>
<link rel="stylesheet" href="{fonts}">
<link rel="stylesheet" href="{style}">
</head>
<body>
<main class="nicegui-content">
<div class="login panel">
<div class="brand">training-worker</div>
<h1>Log in</h1>
<form method="post" action="{action}">
<div class="field{classes}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 aria-describedby="help{described}"{invalid}>
{problem}<p class="help" id="help">An operator creates one with
<code>training-worker keys create</code>. On the machine of <code>training-worker up</code>, the
file <code>console-key</code> in <code>TRAINING_HOME</code> holds one.</p>
</div>
<button class="btn btn-primary" type="submit">Log in</button>
</form>
</div>
</main>
</body>
</html>
"""
_WRONG = (
    '<p class="error" id="error" role="alert">This key is unknown or revoked, or has expired. '
    "Check that you pasted all of it.</p>\n"
)


def add_login_page(app: FastAPI) -> None:
    """Add the login page to the application; ``console.login`` handles its form."""

    @app.get("/login", include_in_schema=False)
    async def show(request: Request) -> Response:
        return _page(request, is_wrong=request.query_params.get("wrong") is not None)


def login_address(request: Request) -> str:
    """Return the address of the login page that leads back to the requested page."""
    target = request.url.path.removeprefix(prefix_of(request))
    if request.url.query:
        target += f"?{request.url.query}"
    return f"{prefix_of(request)}/login?next={quote(target, safe='')}"


def _page(request: Request, *, is_wrong: bool) -> HTMLResponse:
    target = safe_target(request.query_params.get("next", ""))
    prefix = prefix_of(request)
    page = _PAGE.format(
        script=THEME_SCRIPT,
        # The same fonts as on the other pages.
        fonts=escape(f"{prefix}/_nicegui/{nicegui.__version__}/static/fonts.css"),
        style=escape(f"{prefix}{style_sheet()}"),
        action=escape(f"{prefix}/login?next={quote(target, safe='')}"),
        classes=" field-error" if is_wrong else "",
        described=" error" if is_wrong else "",
        invalid=' aria-invalid="true"' if is_wrong else "",
        problem=_WRONG if is_wrong else "",
    )
    return HTMLResponse(page)
