"""Frame of every page: the top bar with navigation, the theme, and announcements."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse
from nicegui import Client, ui

from console.errors import ConsoleError, UnauthorizedError
from console.pages.elements import Tag, button
from console.scopes import check_scope
from console.security_headers import API
from tasks.access.api_keys import Caller, Scope

ASSETS = "/console-assets"
"""Path of the style sheet."""
FOLDER = files("console.pages") / "assets"

# The browser keeps a chosen theme; without one, the page follows the system.
THEME_SCRIPT = (
    "try{const t=localStorage.getItem('theme');if(t)document.documentElement.dataset.theme=t}"
    "catch(e){}"
)
_SWITCH_THEME = """() => {
  const system = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
  const root = document.documentElement;
  const next = (root.dataset.theme || system) === 'dark' ? 'light' : 'dark';
  if (next === system) { localStorage.removeItem('theme'); delete root.dataset.theme; }
  else { localStorage.setItem('theme', next); root.dataset.theme = next; }
}"""

_NAVIGATION = (
    ("New job", "/new", Scope.JOBS_WRITE),
    ("Jobs", "/jobs", Scope.JOBS_READ),
    ("Datasets", "/datasets", Scope.UPLOADS),
    ("Fleet", "/fleet", Scope.JOBS_READ),
)


class Frame:
    """Frame of the page that is being built.

    Args:
        request: The request for the page.
        find_caller: Returns the caller of the session; None after it has ended.
    """

    def __init__(self, request: Request, find_caller: Callable[[], Caller | None]) -> None:
        self._find_caller = find_caller
        self._client: Client | None = None
        self._prefix = prefix_of(request)

    @property
    def caller(self) -> Caller:
        """Caller of the session.

        Raises:
            UnauthorizedError: The session has ended; the page opens the login page.
        """
        caller = self._find_caller()
        if caller is None:
            if self._client is not None:
                self._client.open(self.link("/login"))
            raise UnauthorizedError("your session has ended; log in again")
        return caller

    def allowed(self, scope: Scope) -> Caller:
        """Return the caller of the session, whose key has a scope.

        Raises:
            UnauthorizedError: The session has ended; the page opens the login page.
            ForbiddenError: The key lacks the scope.
        """
        return check_scope(self.caller, scope)

    def link(self, path: str) -> str:
        """Return the address of a path, also behind a proxy that strips a prefix."""
        return f"{self._prefix}{path}"

    @contextmanager
    def page(self, title: str, current: str = "") -> Iterator[None]:
        """Build the page; its content goes into the context.

        Args:
            title: Title of the browser's tab.
            current: Path of the navigation link to highlight.
        """
        ui.page_title(f"{title} · training-worker")
        ui.add_head_html(f"<script>{THEME_SCRIPT}</script>")
        ui.add_head_html(f'<link rel="stylesheet" href="{self.link(style_sheet())}">')
        client = self._client = ui.context.client
        self._add_bar(current)
        with client.content:
            main = Tag("div", classes="stack")
        with client.layout:
            self._announcements = Tag("div", classes="sr-only", role="status", aria_live="polite")
        ui.skip_link(target=main)
        with main:
            yield

    def announce(self, text: str) -> None:
        """Announce to screen readers what others see."""
        self._announcements.update_text(text)

    def _add_bar(self, current: str) -> None:
        caller = self.caller
        with ui.context.client.layout:
            bar = Tag("header", classes="topbar")
        bar.move(target_index=0)
        with bar, Tag("div", classes="topbar-inner"):
            Tag("a", "training-worker", "brand", href=self.link("/jobs"))
            with Tag("nav", classes="nav", aria_label="Main"):
                for name, path, scope in _NAVIGATION:
                    if caller.allows(scope):
                        current_page = "page" if path == current else None
                        Tag("a", name, href=self.link(path), aria_current=current_page)
                Tag("a", "API", href=self.link(f"{API}/docs"))
            with Tag("div", classes="caller"):
                theme = button("", "quiet theme", aria_label="Switch between light and dark")
                theme.on("click", js_handler=_SWITCH_THEME)
                Tag("span", caller.name, "caller-name", title=caller.name)
                if caller.expires_soon and caller.expires is not None:
                    Tag("span", f"key expires {caller.expires:%Y-%m-%d}", "note note-warning small")
                with Tag("form", method="post", action=self.link("/logout")):
                    Tag("button", "Log out", "btn btn-quiet", type="submit")


def text_answer(error: ConsoleError) -> Response:
    """Return the answer to a request for which no page is built."""
    return PlainTextResponse(f"{error.message}\n", error.status, error.headers)


def prefix_of(request: Request) -> str:
    """Return the prefix that a proxy strips from paths."""
    prefix: str = request.scope.get("root_path", "")
    return prefix.rstrip("/")


@cache
def style_sheet() -> str:
    """Return the path of the style sheet, with its digest to invalidate caches."""
    digest = hashlib.sha256((FOLDER / "console.css").read_bytes()).hexdigest()
    return f"{ASSETS}/console.css?v={digest[:8]}"


def dialog(title: str, text: str, choices: dict[str, tuple[str, Callable[[], Any]]]) -> ui.dialog:
    """Return a dialog that asks before an irreversible action.

    Args:
        title: The question.
        text: What the answers do.
        choices: The button variant and the action of each answer.
    """
    with ui.dialog() as opened, Tag("div", classes="dialog") as box:
        heading = Tag("h2", title)
        Tag("p", text, "muted")
        with Tag("div", classes="actions"):
            for answer, (variants, action) in choices.items():
                button(answer, variants).on("click", lambda _, it=action: _answer(opened, it))
            button("Go back").on("click", opened.close)
    box.set_attribute("role", "alertdialog")
    box.set_attribute("aria_labelledby", heading.html_id)
    return opened


def _answer(opened: ui.dialog, action: Callable[[], Any]) -> Any:
    opened.close()
    return action()
