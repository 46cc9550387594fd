import pytest
from redis import Redis

from console.errors import UnavailableError
from console.login import SESSION_TTL_S, Sessions, safe_target
from tasks.access.api_keys import ApiKeys, Caller, digest_of
from tasks.access.login_links import LOGIN_LINK_TTL, LoginLinks
from tasks.state.connection import connect
from tests.console.conftest import Served


@pytest.fixture
def sessions(served: Served, redis_client: Redis) -> Sessions:
    return Sessions(redis_client, ApiKeys(served.settings.api_keys_file))


def test_a_session_expires(served: Served, sessions: Sessions, redis_client: Redis) -> None:
    cookie = sessions.start(served.keys["acme"])
    assert cookie is not None
    assert sessions.find(cookie) == Caller("acme", "acme")
    assert sessions.find("another") is None
    key = f"training:session:{digest_of(cookie)}"
    assert SESSION_TTL_S - 60 < int(redis_client.ttl(key)) <= SESSION_TTL_S
    assert served.keys["acme"] not in str(redis_client.get(key))
    redis_client.delete(key)
    assert sessions.find(cookie) is None
    assert sessions.start("twk_wrong") is None


def test_a_link_starts_one_session(served: Served, sessions: Sessions, redis_client: Redis) -> None:
    key = served.keys["operator"]
    token = LoginLinks(redis_client).create(key)
    stored = f"training:login_link:{digest_of(token)}"
    assert 0 < int(redis_client.ttl(stored)) <= LOGIN_LINK_TTL.total_seconds()
    assert key not in str(redis_client.get(stored))
    assert not any(token in name for name in redis_client.scan_iter())
    cookie = sessions.start_from_link(token)
    assert sessions.find(cookie) == Caller("operator", None)
    assert sessions.start_from_link(token) is None


def test_links_that_cannot_work_start_no_session(
    served: Served, sessions: Sessions, redis_client: Redis
) -> None:
    api_keys, links = ApiKeys(served.settings.api_keys_file), LoginLinks(redis_client)
    revoked = links.create(api_keys.create("leaving", "acme"))
    api_keys.revoke("leaving")
    expired = links.create(served.keys["acme"])
    redis_client.delete(f"training:login_link:{digest_of(expired)}")
    for token in (revoked, expired, "", "A" * 43, "A" * 10_000, "é\0", served.keys["acme"]):
        assert sessions.start_from_link(token) is None


def test_every_console_serves_a_session_until_one_ends_it(
    served: Served, sessions: Sessions, redis_client: Redis
) -> None:
    other = Sessions(redis_client, ApiKeys(served.settings.api_keys_file))
    cookie = sessions.start(served.keys["acme"])
    assert cookie is not None
    other.open_page(cookie)
    assert other.of_page(cookie) is None
    assert other.find(cookie) == other.of_page(cookie) == Caller("acme", "acme")
    sessions.end(cookie)
    assert other.of_page(cookie) == Caller("acme", "acme")
    other.refresh()
    assert other.of_page(cookie) is None
    assert other.find(cookie) is None
    other.close_page(cookie)


def test_a_session_ends_with_its_key(served: Served, sessions: Sessions) -> None:
    api_keys = ApiKeys(served.settings.api_keys_file)
    cookie = sessions.start(api_keys.create("brief", "acme"))
    assert cookie is not None
    sessions.open_page(cookie)
    assert sessions.find(cookie) == sessions.of_page(cookie) == Caller("brief", "acme")
    api_keys.revoke("brief")
    assert sessions.of_page(cookie) is None
    assert sessions.find(cookie) is None


def test_a_session_waits_for_an_unavailable_broker(served: Served, sessions: Sessions) -> None:
    away = Sessions(connect("redis://127.0.0.1:9"), ApiKeys(served.settings.api_keys_file))
    with pytest.raises(UnavailableError):
        away.find("cookie")
    with pytest.raises(UnavailableError):
        away.start(served.keys["acme"])
    with pytest.raises(UnavailableError):
        away.start_from_link("A" * 43)
    away.open_page("cookie")
    with pytest.raises(UnavailableError):
        away.refresh()


def test_logins_end_the_oldest_sessions_of_their_account_only(
    served: Served, sessions: Sessions
) -> None:
    other = sessions.start(served.keys["zoo"])
    first, *_, last = (sessions.start(served.keys["acme"]) for _ in range(201))
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
