"""The page that shows the API's description."""

import html
import os
import re
import subprocess
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page

from console.api.docs_page import docs_page
from console.api.openapi import api_document, operations
from console.api.site import make_api
from tests.console.conftest import Console
from tests.integration.browsers import (
    chromium,
    is_wider_than_its_screen,
    log_in,
    nameless,
    outline,
    visit,
)

DOCUMENT: dict[str, Any] = api_document(make_api(None))
PAGE = docs_page(DOCUMENT)


def test_every_operation_and_schema_is_shown_and_every_link_leads_there() -> None:
    shown = set(re.findall(r'id="([^"]+)"', PAGE))
    assert {operation["operationId"] for *_, operation in operations(DOCUMENT)} <= shown
    assert set(re.findall(r'href="#([^"]+)"', PAGE)) <= shown
    schemas = {name for name in DOCUMENT["components"]["schemas"] if not name.startswith("Partial")}
    assert {f"schema-{name}" for name in schemas} <= shown


def test_texts_of_the_description_are_escaped() -> None:
    [operation] = [it for *_, it in operations(DOCUMENT) if it["operationId"] == "listPresets"]
    document = {
        **DOCUMENT,
        "paths": {"/presets": {"get": {**operation, "description": "<b>`<i>`"}}},
    }
    page = docs_page(document)
    assert "&lt;b&gt;<code>&lt;i&gt;</code>" in page
    assert "<b>" not in page


def test_anyone_gets_the_page_and_no_script_runs_in_it(console: Console) -> None:
    answer = httpx2.get(f"{console.url}/v1/docs")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src" not in policy
    assert "<script" not in answer.text


@pytest.mark.parametrize("name", ["listJobs", "listUploads", "listPresets", "getHealth"])
def test_examples_run_as_they_are(console: Console, name: str) -> None:
    environment = {**os.environ, "API": f"{console.url}/v1", "KEY": console.keys["acme"]}
    article = PAGE.partition(f'<article id="{name}">')[2]
    example = html.unescape(re.findall(r"<pre[^>]*>(curl [^<]*)</pre>", article)[0])
    command = example.replace("curl ", "curl --silent --show-error --fail ", 1)
    subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True)


def check_page(page: Page) -> None:
    levels, landmarks = outline(page)
    assert levels.count(1) == 1
    assert landmarks >= {"banner", "navigation", "main"}
    assert nameless(page) == []
    assert not is_wider_than_its_screen(page)


@pytest.mark.timeout(120)
def test_a_browser_shows_it_on_any_screen(console: Console) -> None:
    with chromium() as browser:
        for width in (360, 1280):
            with visit(browser, console.url, width=width) as page:
                page.goto("/v1/docs")
                style = "getComputedStyle(document.querySelector('article')).borderRadius"
                assert page.evaluate(style) == "8px"
                page.get_by_role("link", name="Submit job", exact=True).click()
                assert page.url.endswith("#submitJob")
                check_page(page)
        with visit(browser, console.url) as page:
            log_in(page, console.keys["acme"])
            page.get_by_role("link", name="API", exact=True).click()
            page.get_by_role("heading", level=1, name="Fine-tune").wait_for()
            assert page.url == f"{console.url}/v1/docs"
