"""Login page: a plain form that needs no script.

A login link opens it with one button: only a POST uses the link up, so that a browser or a mail
scanner that fetches it ahead does not.
"""

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
{form}</div>
</main>
</body>
</html>
"""
_KEY_FORM = """<form method="post" action="{action}">
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
"""
_LINK_FORM = """<form method="post" action="{action}">
<p class="help">This link logs this browser in. It works once.</p>
<input type="hidden" name="once" value="{token}">
<button class="btn btn-primary" type="submit" autofocus>Log in</button>
</form>
<script>
// The second click of a double click would find the link used, and drop the first one's answer.
let sent = false;
document.forms[0].addEventListener("submit", (event) => {{
  if (sent) event.preventDefault();
  sent = true;
}});
</script>
"""
_PROBLEM = '<p class="error" id="error" role="alert">{}</p>\n'
_PROBLEMS = {
    "key": "This key is unknown or revoked, or has expired. Check that you pasted all of it.",
    "link": "This login link has been used or has expired. Run "
    "<code>training-worker login-link</code> to get a new one, or enter a key.",
}
"""By what the login was tried with, in HTML."""


def add_login_page(app: FastAPI) -> None:
    """Add the login page to the application; ``console.login`` handles its form."""

    @app.get("/login", include_in_schema=False)
    async def show(request: Request) -> Response:
        return _page(request)


def login_address(request: Request) -> str:
    """Return the address of the login page that leads back to the requested page."""
    target = request.url.path.removeprefix(prefix_of(request))
    if request.url.query:
        target += f"?{request.url.query}"
    return f"{prefix_of(request)}/login?next={quote(target, safe='')}"


def _page(request: Request) -> HTMLResponse:
    target = safe_target(request.query_params.get("next", ""))
    prefix = prefix_of(request)
    action = escape(f"{prefix}/login?next={quote(target, safe='')}")
    token = request.query_params.get("once", "")
    page = _PAGE.format(
        script=THEME_SCRIPT,
        # The same fonts as on the other pages.
        fonts=escape(f"{prefix}/_nicegui/{nicegui.__version__}/static/fonts.css"),
        style=escape(f"{prefix}{style_sheet()}"),
        form=_link_form(action, token) if token else _key_form(action, request),
    )
    # The address may have a token.
    return HTMLResponse(page, headers={"Cache-Control": "no-store"})


def _link_form(action: str, token: str) -> str:
    return _LINK_FORM.format(action=action, token=escape(token))


def _key_form(action: str, request: Request) -> str:
    problem = _PROBLEMS.get(request.query_params.get("wrong", ""), "")
    return _KEY_FORM.format(
        action=action,
        classes=" field-error" if problem else "",
        described=" error" if problem else "",
        invalid=' aria-invalid="true"' if problem else "",
        problem=_PROBLEM.format(problem) if problem else "",
    )
