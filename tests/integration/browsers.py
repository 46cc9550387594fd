"""A real browser on the console that records what a page must not do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Roles that need an accessible name.
_NAMED_ROLES = (
    "button",
    "link",
    "textbox",
    "combobox",
    "checkbox",
    "switch",
    "radio",
    "progressbar",
)
# A busy machine is slow.
_TIMEOUT_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser; skip the test if there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser,
    address: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Page]:
    """Open a page in a fresh browser context.

    At the end, check that its console has no messages, that it made no request to another host,
    and that no script in a user's text ran.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        base_url=address,
        reduced_motion="reduce",
    )
    context.set_default_timeout(_TIMEOUT_MS)
    problems: list[str] = []
    host = urlsplit(address).netloc

    def check_request(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != host:
            problems.append(f"requested {url}")

    page = context.new_page()
    page.on(
        "console", lambda line: problems.append(line.text) if line.type in _PROBLEM_TYPES else None
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: check_request(request.url))
    page.on("websocket", lambda socket: check_request(socket.url))
    page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
    try:
        yield page
    finally:
        context.close()
    assert not problems, problems


_PROBLEM_TYPES = ("error", "warning", "assert")


def log_in(page: Page, key: str) -> None:
    """Log in, as a user does."""
    page.goto("/")
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", level=1, name="Jobs").wait_for()


def field(page: Page, label: str) -> Locator:
    """Return the field with this label."""
    return page.get_by_role("textbox", name=label, exact=True)


def tab_to(page: Page, name: str, *, max_stops: int = 150) -> None:
    """Press Tab until the element with this name has the focus, which must be visible."""
    stops: list[str] = []
    for _ in range(max_stops):
        page.keyboard.press("Tab")
        stop: dict[str, Any] = page.evaluate(_FOCUSED)
        assert stop["is"], f"the focus is lost after {stops}"
        assert stop["seen"], f"the focus of {stop['name']!r} is not visible"
        stops.append(stop["name"])
        if stop["name"] == name:
            return
    raise AssertionError(f"Tab does not reach {name!r}, only {stops}")


# The focus is visible on the element, on its label, or on the box around it.
_FOCUSED = """() => {
  const it = document.activeElement;
  const label = it.labels && it.labels[0] ? it.labels[0].innerText : '';
  const name = it.getAttribute('aria-label') || label || it.innerText || '';
  const outlined = (e) => e && getComputedStyle(e).outlineStyle !== 'none'
    && parseFloat(getComputedStyle(e).outlineWidth) > 0;
  const seen = [it, it.closest('label'), it.closest('.drop')?.querySelector('.btn')].some(outlined);
  return { name: name.trim().split('\\n')[0], seen, is: it !== document.body };
}"""


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page, minor things too."""
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text("utf-8"))
    found: list[str] = page.evaluate(_RUN_AXE)
    return found


# With a rule that axe-core does not run by itself. It would load the page's style sheets again, at
# which a bar of the page's framework appears.
_RUN_AXE = """async () => {
  const rules = { 'label-content-name-mismatch': { enabled: true } };
  const { violations } = await axe.run(
    document, { rules, resultTypes: ['violations'], preload: false });
  return violations.flatMap((it) => it.nodes.map((node) =>
    `${it.id} (${it.impact}): ${node.html.slice(0, 200)}: ${node.failureSummary}`));
}"""


def nameless(page: Page) -> list[str]:
    """Return the controls of a page without an accessible name."""
    roles = "|".join(_NAMED_ROLES)
    lines = page.locator("body").aria_snapshot().splitlines()
    return [line for line in lines if re.match(rf"\s*- ({roles})(?! \")", line)]


def outline(page: Page) -> tuple[list[int], set[str]]:
    """Return the levels of a page's headings in order, and its landmarks."""
    snapshot = page.locator("body").aria_snapshot()
    levels = [int(level) for level in re.findall(r"- heading .*\[level=(\d)\]", snapshot)]
    return levels, set(re.findall(r"- (banner|navigation|main|complementary)\b", snapshot))


def is_wider_than_its_screen(page: Page) -> bool:
    """Return whether the page must be scrolled sideways."""
    wider: bool = page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    return wider
