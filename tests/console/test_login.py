import pytest

from console import login
from console.login import Sessions, safe_target
from tasks.api_keys import ApiKeys, Caller
from tests.console.conftest import Served


def test_a_session_expires(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "SESSION_TTL_S", 3600)
    sessions = Sessions(ApiKeys(served.settings.api_keys_file))
    cookie = sessions.start(served.keys["acme"])
    assert sessions.find(cookie) == Caller("acme", "acme")
    assert sessions.find("another") is None
    monkeypatch.setattr(login, "SESSION_TTL_S", -1)
    assert sessions.find(sessions.start(served.keys["acme"])) is None
    assert sessions.start("twk_wrong") is None


def test_logins_end_the_oldest_sessions_of_their_account_only(served: Served) -> None:
    sessions = Sessions(ApiKeys(served.settings.api_keys_file))
    other = sessions.start(served.keys["zoo"])
    first, *_, last = (sessions.start(served.keys["acme"]) for _ in range(10_000))
    assert sessions.find(other) == Caller("zoo", "zoo")
    assert sessions.find(last) == Caller("acme", "acme")
    assert sessions.find(first) is None


@pytest.mark.parametrize("target", ["/jobs", "/new?draft=abc", "/jobs/a-b.c?x=1"])
def test_login_leads_to_the_requested_page(target: str) -> None:
    assert safe_target(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "",
        "jobs",
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/a\nb",
        "javascript:1",
    ],
)
def test_login_leads_to_no_other_site(target: str) -> None:
    assert safe_target(target) == "/"
