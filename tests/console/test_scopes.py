"""Scopes: each route names one, and a key without it is refused by API and pages."""

from collections.abc import Iterator
from datetime import timedelta

import httpx2
import pytest

from console.api.site import make_api
from tasks.access.api_keys import Scope
from tests.console.conftest import Console, job

OPEN = {("get", "/health"), ("options", "/uploads")}


@pytest.fixture
def keys(console: Console) -> Iterator[dict[str, str]]:
    """A tenant's key for each scope."""
    api_keys = console.services.api_keys
    names = {scope: scope.replace(":", "-") for scope in Scope if scope != Scope.ADMIN}
    yield {
        str(scope): api_keys.create(name, "acme", scopes=[scope]) for scope, name in names.items()
    }
    for name in names.values():
        api_keys.revoke(name)


def ask(console: Console, key: str, method: str, path: str, **more: object) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.request(method, f"{console.url}/v1{path}", headers=headers, **more)  # type: ignore[arg-type]


def test_every_route_names_its_scope(console: Console) -> None:
    description = make_api(console.services).openapi()
    without = set()
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            scopes = [scope for each in operation.get("security", ()) for scope in each["key"]]
            assert len(scopes) <= 1
            assert {Scope(scope) for scope in scopes} <= set(Scope)
            if not scopes:
                without.add((method, path))
    assert without == OPEN


def test_a_key_is_refused_without_the_scope_of_the_route(
    console: Console, keys: dict[str, str]
) -> None:
    job_id = ask(console, keys["jobs:write"], "POST", "/jobs", json=job()).json()["id"]
    routes = {
        "jobs:read": ("GET", f"/jobs/{job_id}"),
        "jobs:write": ("POST", f"/jobs/{job_id}:pause"),
        "uploads": ("GET", "/uploads"),
        "files": ("GET", f"/jobs/{job_id}/files"),
        "webhooks": ("GET", "/webhook-secrets"),
    }
    for scope, key in keys.items():
        for needed, (method, path) in routes.items():
            answer = ask(console, key, method, path)
            if needed == scope:
                assert answer.status_code == 200, answer.text
            else:
                assert answer.status_code == 403
                assert answer.json()["detail"].endswith(f"lacks the scope {needed}")
    assert ask(console, keys["files"], "GET", "/audit").status_code == 403


def test_pages_obey_the_scopes_of_the_key(console: Console, keys: dict[str, str]) -> None:
    def page(scope: str, path: str) -> httpx2.Response:
        with httpx2.Client(base_url=console.url) as browser:
            origin = {"Origin": console.url}
            assert browser.post("/login", data={"key": keys[scope]}, headers=origin).is_redirect
            return browser.get(path, follow_redirects=True)

    for path in ("/jobs", "/fleet"):
        assert page("jobs:read", path).status_code == 200
        refused = page("files", path)
        assert refused.status_code == 403
        assert "lacks the scope jobs:read" in refused.text
    assert page("jobs:read", "/new").status_code == 403
    assert "/new" not in page("jobs:read", "/jobs").text


def test_an_expired_key_is_answered_with_the_reason(console: Console) -> None:
    file = console.settings.api_keys_file
    before = file.read_text("utf-8")
    key = console.services.api_keys.create("brief", "acme", expires_in=timedelta(days=1))
    try:
        answer = ask(console, key, "GET", "/jobs")
        assert answer.status_code == 200
        [entry] = [it for it in console.services.api_keys.entries() if it.name == "brief"]
        assert entry.expires is not None
        assert answer.headers["API-Key-Expires"] == f"{entry.expires:%Y-%m-%dT%H:%M:%SZ}"
        text = file.read_text("utf-8")
        file.write_text(text.replace(f"{entry.expires:%Y-%m-%d}T", "2026-01-01T"), "utf-8")
        refused = ask(console, key, "GET", "/jobs")
        assert refused.status_code == 401
        assert "API key brief expired at 2026-01-01" in refused.json()["detail"]
    finally:
        file.write_text(before, "utf-8")
