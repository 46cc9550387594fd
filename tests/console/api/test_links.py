"""Signed links to published files."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest

from console.services.keys import LINK_SECRET
from tasks.access.api_keys import Scope
from tests.console.conftest import Console, job

NAME = "samples/a b.png"
DATA = b"0123456789"


@pytest.fixture
def job_id(console: Console, acme: httpx2.Client) -> str:
    job_id: str = acme.post("/jobs", json=job(id="one")).json()["id"]
    console.publish(job_id, {"lora.safetensors": b"weights", NAME: DATA})
    return job_id


@pytest.fixture
def anyone(console: Console) -> Iterator[httpx2.Client]:
    with httpx2.Client() as client:
        yield client


def make(client: httpx2.Client, job_id: str, name: str = NAME, **query: int) -> httpx2.Response:
    return client.post(f"/jobs/{job_id}/files/{name}:link", params=query)


def changed(url: str, **query: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **query})).geturl()


def test_a_link_downloads_its_file_without_a_key(
    acme: httpx2.Client, anyone: httpx2.Client, job_id: str
) -> None:
    made = make(acme, "one", life_s=600)
    assert made.status_code == 201
    link = made.json()
    left = datetime.fromisoformat(link["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=9) < left < timedelta(minutes=11)
    got = anyone.get(link["url"])
    assert (got.status_code, got.content) == (200, DATA)
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20b.png"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in got.headers
    part = anyone.get(link["url"], headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")


def test_a_changed_link_is_refused(
    acme: httpx2.Client, anyone: httpx2.Client, job_id: str, console: Console
) -> None:
    url = make(acme, job_id).json()["url"]
    query = dict(parse_qsl(urlsplit(url).query))
    wrong = [
        changed(url, signature="A" * 43),
        changed(url, signature=""),
        changed(url, signature="\ud7ff\u20ac"),
        changed(url, expires=str(int(query["expires"]) + 1)),
        changed(url, expires="9" * 400),
        changed(url, key="0" * 16),
        url.replace("a%20b.png", "a%20c.png"),
        url.replace(NAME.replace(" ", "%20"), "lora.safetensors"),
        url.replace(job_id, "another"),
        url.replace("/files/samples/a%20b.png", ""),
    ]
    answers = [anyone.get(it) for it in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    [problem] = answers[0].json()["errors"]
    assert (problem["location"], problem["remedy"]) == (
        "signature",
        "ask its sender for a new link",
    )
    # A session or key opens no other file either, and no other method is signed.
    assert acme.get(wrong[0]).status_code == 401
    for method in ("HEAD", "POST", "DELETE"):
        assert anyone.request(method, url).status_code == 401
    assert anyone.get(url).status_code == 200


def test_a_link_ends_in_time(
    acme: httpx2.Client, anyone: httpx2.Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(acme, job_id, life_s=3601).status_code == 422
    assert make(acme, job_id, life_s=0).status_code == 422
    url = make(acme, job_id, life_s=3600).json()["url"]
    # As an hour and a minute later, and as one signed for longer than an hour.
    for seconds in (3660, -60):
        monkeypatch.setattr("redis.Redis.time", later(seconds))
        assert anyone.get(url).status_code == 401
        monkeypatch.undo()
    assert anyone.get(url).status_code == 200


def later(seconds: int) -> object:
    now = int(datetime.now(UTC).timestamp())
    return lambda _: (now + seconds, 0)


def test_a_link_ends_with_its_key(console: Console, anyone: httpx2.Client, job_id: str) -> None:
    api_keys = console.services.api_keys
    key = api_keys.create("sharer", "acme", scopes=[Scope.FILES])
    with httpx2.Client(base_url=f"{console.url}/v1") as sharer:
        sharer.headers["Authorization"] = f"Bearer {key}"
        url = make(sharer, job_id).json()["url"]
    assert anyone.get(url).status_code == 200
    api_keys.revoke("sharer")
    assert anyone.get(url).status_code == 401
    api_keys.create("sharer", "acme")
    assert anyone.get(url).status_code == 401
    api_keys.revoke("sharer")


def test_a_link_ends_before_its_key_expires(console: Console, job_id: str) -> None:
    api_keys = console.services.api_keys
    key = api_keys.create("brief", "acme", expires_in=timedelta(minutes=5))
    with httpx2.Client(base_url=f"{console.url}/v1") as sharer:
        sharer.headers["Authorization"] = f"Bearer {key}"
        link = make(sharer, job_id, life_s=3600).json()
    [entry] = [it for it in api_keys.entries() if it.name == "brief"]
    api_keys.revoke("brief")
    assert entry.expires is not None
    assert datetime.fromisoformat(link["expires_at"]) <= entry.expires


def test_other_tenants_and_unknown_files_get_no_link(
    zoo: httpx2.Client, acme: httpx2.Client, job_id: str
) -> None:
    other, unknown = make(zoo, job_id), make(zoo, "unknown")
    assert other.status_code == unknown.status_code == 404
    assert other.json()["detail"] == unknown.json()["detail"].replace("unknown", job_id)
    assert make(acme, job_id, "no-such").status_code == 404


def test_a_link_shows_neither_key_nor_name_and_is_not_logged(
    console: Console, acme: httpx2.Client, anyone: httpx2.Client, job_id: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    url = make(acme, job_id).json()["url"]
    [entry] = [it for it in console.services.api_keys.entries() if it.name == "acme"]
    assert entry.sha256 not in url
    assert "acme" not in urlsplit(url).query
    anyone.get(url)
    anyone.get(changed(url, expires="1"))
    signature = dict(parse_qsl(urlsplit(url).query))["signature"]
    ours = [it for it in caplog.records if not it.name.startswith(("httpx", "httpcore"))]
    assert all(signature not in record.getMessage() for record in ours)
    [made] = console.services.client.audit.entries(action="link.create")
    assert (made.actor, made.subject, made.tenant) == ("key acme", job_id, "acme")
    assert signature not in made.model_dump_json()


def test_the_secret_of_links_expires(console: Console, acme: httpx2.Client, job_id: str) -> None:
    make(acme, job_id)
    assert 3600 < int(console.redis.ttl(LINK_SECRET)) <= 86_400


def test_wrong_links_are_limited(anyone: httpx2.Client, console: Console) -> None:
    url = f"{console.url}/v1/jobs/x/files/y?key=1&expires=1&signature=1"
    assert [anyone.get(url).status_code for _ in range(62)] == [401] * 60 + [429] * 2
