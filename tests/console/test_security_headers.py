import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.responses import PlainTextResponse

from console.gate import MAX_BODY_BYTES, refusal
from console.login import COOKIE
from console.security_headers import SecurityHeaders
from console.services.services import open_services
from tasks.access.api_keys import ApiKeys
from tasks.access.login_links import LoginLinks
from tasks.settings.settings import Settings
from tests.console.conftest import PNG, Console, Served, job, make_other_app
from worker.local.embedded_broker import EmbeddedBroker


@pytest.fixture
def anyone(console: Console) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=console.url) as client:
        yield client


def test_every_route_but_health_needs_a_key(anyone: httpx2.Client) -> None:
    assert anyone.get("/v1/health").json() == {"status": "ok"}
    paths = anyone.get("/v1/openapi.json").json()["paths"]
    refused = 0
    for path, methods in paths.items():
        for method in methods:
            if path == "/health" or method == "options":
                continue
            concrete = path.replace("{number}", "0").replace("{", "").replace("}", "")
            answer = anyone.request(method, f"/v1{concrete}", json={})
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer twk_x", "Basic twk_x", "twk_x", "Bearer twk_" + "A" * 43],
)
def test_invalid_keys_are_refused(anyone: httpx2.Client, header: str) -> None:
    assert anyone.get("/v1/jobs", headers={"Authorization": header}).status_code == 401


def test_revoking_a_key_takes_effect_at_once(console: Console, anyone: httpx2.Client) -> None:
    accounts = ApiKeys(console.settings.api_keys_file)
    key = accounts.create("passing", "acme")
    headers = {"Authorization": f"Bearer {key}"}
    assert anyone.get("/v1/jobs", headers=headers).status_code == 200
    logged_in = anyone.post("/login", data={"key": key}, headers={"Origin": console.url})
    assert logged_in.headers["location"] == "/"
    assert anyone.get("/v1/jobs").status_code == 200
    accounts.revoke("passing")
    assert anyone.get("/v1/jobs", headers=headers).status_code == 401
    assert anyone.get("/v1/jobs").status_code == 401


def test_a_browser_logs_in_and_out(console: Console, anyone: httpx2.Client) -> None:
    origin = {"Origin": console.url}
    wrong = anyone.post("/login", data={"key": "twk_wrong"}, headers=origin)
    assert wrong.headers["location"].startswith("/login?wrong=key")
    assert "set-cookie" not in wrong.headers
    right = anyone.post("/login", data={"key": console.keys["acme"]}, headers=origin)
    assert right.status_code == 303
    cookie = right.headers["set-cookie"]
    assert console.keys["acme"] not in cookie
    assert all(it in cookie for it in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert anyone.get("/v1/jobs").status_code == 200
    held = anyone.cookies[COOKIE]
    anyone.post("/logout", headers=origin)
    anyone.cookies.set(COOKIE, held)
    assert anyone.get("/v1/jobs").status_code == 401


def test_only_the_button_uses_a_login_link_up(console: Console, anyone: httpx2.Client) -> None:
    token = LoginLinks(console.redis).create(console.keys["operator"])
    for _ in range(2):  # the browser may fetch it ahead
        page = anyone.get("/login", params={"once": token, "next": "/fleet"})
        assert page.text.count(token) == 1
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in page.headers
    form, target = {"once": token}, "/login?next=%2Ffleet"
    assert f'action="{target}"' in page.text
    evil = anyone.post(target, data=form, headers={"Origin": "https://evil.example"})
    assert evil.headers["location"] == "/login?wrong=link&next=%2Ffleet"
    used = anyone.post(target, data=form, headers={"Origin": console.url})
    assert used.headers["location"] == "/fleet"
    assert anyone.get("/v1/jobs").status_code == 200
    anyone.cookies.clear()
    again = anyone.post(target, data=form, headers={"Origin": console.url})
    assert "has been used or has expired" in anyone.get(again.headers["location"]).text
    assert "set-cookie" not in again.headers


def test_a_login_link_is_escaped(anyone: httpx2.Client) -> None:
    page = anyone.get("/login", params={"once": '"><script>alert(1)</script>'}).text
    assert "<script>alert" not in page


def test_wrong_login_links_are_counted(console: Console, anyone: httpx2.Client) -> None:
    answers = [
        anyone.post("/login", data={"once": "A" * 43}, headers={"Origin": console.url})
        for _ in range(100)
    ]
    assert answers[0].status_code == 303
    assert answers[-1].status_code == 429


def test_other_sites_cannot_use_a_session(console: Console, anyone: httpx2.Client) -> None:
    key = {"key": console.keys["acme"]}
    evil = {"Origin": "https://evil.example"}
    assert "wrong" in anyone.post("/login", data=key, headers=evil).headers["location"]
    anyone.post("/login", data=key, headers={"Origin": console.url})
    for headers in (
        {},
        evil,
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": console.url},
    ):
        assert anyone.post("/v1/jobs", json=job(), headers=headers).status_code == 403
    for headers in ({"Origin": console.url}, {"Sec-Fetch-Site": "same-origin"}):
        assert anyone.post("/v1/jobs", json=job(), headers=headers).status_code == 201


def test_a_session_downloads_files(console: Console, anyone: httpx2.Client) -> None:
    with console.client("acme") as client:
        job_id = client.post("/jobs", json=job()).json()["id"]
    console.publish(job_id, {"cat.png": PNG})
    anyone.post("/login", data={"key": console.keys["acme"]}, headers={"Origin": console.url})
    assert anyone.get(f"/v1/jobs/{job_id}/files/cat.png").content == PNG


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_unknown_host_names_are_refused(anyone: httpx2.Client, host: str) -> None:
    answer = anyone.get("/v1/health", headers={"Host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:99"])
def test_local_host_names_are_served(anyone: httpx2.Client, host: str) -> None:
    assert anyone.get("/v1/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({"console_url": "https://gpu.example.org/x"}, "gpu.example.org", 200),
        ({"allowed_hosts": "console, GPU.example.org"}, "gpu.example.org:80", 200),
        ({"allowed_hosts": "console"}, "gpu.example.org", 421),
        ({}, "gpu.example.org", 421),
        ({}, "192.168.1.9:8080", 200),
    ],
)
def test_configured_host_names_are_served_on_every_address(
    settings: dict[str, Any], host: str, status: int, address: str
) -> None:
    async def ask() -> int:
        app = SecurityHeaders(
            PlainTextResponse(), Settings(console_address=address, **settings), refusal
        )
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.get("/")).status_code

    assert asyncio.run(ask()) == status


def test_every_response_has_security_headers(console: Console, anyone: httpx2.Client) -> None:
    for path in ("/v1/health", "/v1/jobs", "/v1/nothing", "/v1/openapi.json", "/login"):
        headers = anyone.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in anyone.get("/v1/jobs").headers["content-security-policy"]


def test_large_bodies_are_refused_before_and_while_they_arrive(
    console: Console, acme: httpx2.Client
) -> None:
    long = b'"' + b"x" * MAX_BODY_BYTES + b'"'
    headers = {"Content-Type": "application/json"}
    assert acme.post("/jobs", content=long, headers=headers).status_code == 413
    pieces = (long[i : i + 65536] for i in range(0, len(long), 65536))
    assert acme.post("/jobs", content=pieces, headers=headers).status_code == 413
    # The refusal comes before any byte of the body.
    with socket.create_connection(("127.0.0.1", int(console.url.rpartition(":")[2]))) as raw:
        raw.settimeout(10)
        key = f"Authorization: Bearer {console.keys['acme']}\r\n"
        headers_only = f"Host: localhost\r\n{key}Content-Length: 99999999\r\n\r\n"
        raw.sendall(f"POST /v1/jobs HTTP/1.1\r\n{headers_only}".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_responses_carry_the_rate_limit(acme: httpx2.Client) -> None:
    headers = acme.get("/jobs").headers
    assert headers["ratelimit-limit"] == "100000"
    assert 0 < int(headers["ratelimit-remaining"]) < 100000


def test_unknown_paths_and_wrong_methods_are_problems(acme: httpx2.Client) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/jobs", 405)):
        answer = acme.request(method, path)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_addresses_keep_the_prefix_that_a_proxy_strips(served: Served) -> None:
    settings = served.settings.model_copy(
        update={"console_url": "https://gpu.example.org/training"}
    )
    assert settings.broker_url is not None
    services = open_services(settings, settings.broker_url.get_secret_value())

    async def ask() -> None:
        transport = httpx2.ASGITransport(make_other_app(served, services), root_path="/training")
        async with httpx2.AsyncClient(
            transport=transport, base_url="https://gpu.example.org/training"
        ) as client:
            headers = {"Authorization": f"Bearer {served.keys['acme']}"}
            tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
            created = await client.post("/v1/uploads", headers=headers | tus)
            location = created.headers["location"]
            assert location.startswith("/training/v1/uploads/")
            path = location.removeprefix("/training")
            assert (await client.delete(path, headers=headers)).status_code == 204
            origin = {"Origin": "https://gpu.example.org"}
            key = {"key": served.keys["acme"]}
            logged_in = await client.post("/login", data=key, headers=origin)
            assert logged_in.headers["location"] == "/training/"
            assert "Path=/training/" in logged_in.headers["set-cookie"]
            assert "Secure" in logged_in.headers["set-cookie"]
            assert (await client.get("/v1/jobs")).status_code == 200
            long = b"x" * (MAX_BODY_BYTES + 1)
            assert (await client.post("/v1/jobs", content=long, headers=headers)).status_code == 413
        await services.close()

    asyncio.run(ask())


def test_an_unavailable_broker_is_a_503_with_retry_after(served: Served, tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        services = open_services(served.settings, broker.url)
    app = make_other_app(served, services)
    headers = {"Authorization": f"Bearer {served.keys['acme']}"}

    async def ask() -> None:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in ("/v1/health", "/v1/jobs", "/v1/fleet", "/v1/jobs/x/events"):
                answer = await client.get(path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (503, "no_broker"), path
                assert answer.headers["retry-after"]
            answer = await client.post("/v1/jobs", json=job(), headers=headers)
            assert answer.status_code == 503
            assert "socket" not in answer.text
        await services.close()

    asyncio.run(ask())


def test_a_full_broker_is_a_503_with_retry_after(console: Console, acme: httpx2.Client) -> None:
    console.redis.config_set("maxmemory", 1)
    try:
        answer = acme.post("/jobs", json=job())
        assert acme.get("/jobs").status_code == 200
    finally:
        console.redis.config_set("maxmemory", 0)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_broker")
    assert answer.headers["retry-after"]
