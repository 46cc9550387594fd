"""What every page has: the bar on top with the ways to go, the look, and a place for messages."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request
from nicegui import Client, ui

from console.errors import UnauthorizedError
from console.pages.markup import Tag, button
from tasks.api_keys import Caller

ASSETS = "/console-assets"
"""Where the style sheet is."""
FOLDER = files("console.pages") / "assets"

# The choice is kept in the browser; without one, the page follows the system.
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

_WAYS = (("New job", "/new"), ("Jobs", "/jobs"), ("Fleet", "/fleet"))


class Frame:
    """The page that is being made.

    Args:
        request: Asks for it.
        whose: Whose session it is; None once it is over.
    """

    def __init__(self, request: Request, whose: Callable[[], Caller | None]) -> None:
        self._whose = whose
        self._client: Client | None = None
        self._prefix = prefix_of(request)

    @property
    def caller(self) -> Caller:
        """Who asks, as of now.

        Raises:
            UnauthorizedError: The session is over; the page leads to the way in.
        """
        caller = self._whose()
        if caller is None:
            if self._client is not None:
                self._client.open(self.link("/login"))
            raise UnauthorizedError("the session is over; log in again")
        return caller

    def link(self, path: str) -> str:
        """The address of a path of the console, also behind a proxy that takes a path away."""
        return f"{self._prefix}{path}"

    @contextmanager
    def page(self, title: str, current: str = "") -> Iterator[None]:
        """The page's content, within its bar.

        Args:
            title: Shown in the browser's tab.
            current: The path of the way that this page is on.
        """
        ui.page_title(f"{title} · training-worker")
        ui.add_head_html(f"<script>{THEME_SCRIPT}</script>")
        ui.add_head_html(f'<link rel="stylesheet" href="{self.link(style_sheet())}">')
        client = self._client = ui.context.client
        self._bar(current)
        with client.content:
            main = Tag("div", classes="stack")
        with client.layout:
            self._news = Tag("div", classes="sr-only", role="status", aria_live="polite")
        ui.skip_link(target=main)
        with main:
            yield

    def tell(self, text: str) -> None:
        """Tell a screen reader something that others see."""
        self._news.say(text)

    def _bar(self, current: str) -> None:
        with ui.context.client.layout:
            bar = Tag("header", classes="topbar")
        bar.move(target_index=0)
        with bar, Tag("div", classes="topbar-inner"):
            Tag("a", "training-worker", "brand", href=self.link("/jobs"))
            with Tag("nav", classes="nav", aria_label="Main"):
                for name, path in _WAYS:
                    here = "page" if path == current else None
                    Tag("a", name, href=self.link(path), aria_current=here)
            with Tag("div", classes="account"):
                theme = button("◐", "quiet", aria_label="Switch between light and dark")
                theme.on("click", js_handler=_SWITCH_THEME)
                Tag("span", self.caller.name, "account-name", title=self.caller.name)
                with Tag("form", method="post", action=self.link("/logout")):
                    Tag("button", "Log out", "btn btn-quiet", type="submit")


def prefix_of(request: Request) -> str:
    """What a proxy before the console takes away from paths."""
    prefix: str = request.scope.get("root_path", "")
    return prefix.rstrip("/")


@cache
def style_sheet() -> str:
    """The path of the style sheet, another one whenever it changes."""
    digest = hashlib.sha256((FOLDER / "console.css").read_bytes()).hexdigest()
    return f"{ASSETS}/console.css?v={digest[:8]}"


def dialog(title: str, text: str, choices: dict[str, tuple[str, Callable[[], Any]]]) -> ui.dialog:
    """A question before something that cannot be taken back.

    Args:
        title: The question.
        text: What each answer does.
        choices: Answer to its look and what is done then.

    Returns:
        The dialog, to be opened.
    """
    with ui.dialog() as asked, Tag("div", classes="dialog") as box:
        heading = Tag("h2", title)
        Tag("p", text, "muted")
        with Tag("div", classes="actions"):
            for answer, (look, done) in choices.items():
                button(answer, look).on("click", lambda _, done=done: _answered(asked, done))
            button("Go back").on("click", asked.close)
    box.have("role", "alertdialog")
    box.have("aria_labelledby", heading.html_id)
    return asked


def _answered(asked: ui.dialog, done: Callable[[], Any]) -> Any:
    asked.close()
    return done()
