"""What the gate answers by itself, and what it bounds."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from nicegui import Client
from pydantic import ValidationError
from redis import Redis
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from websockets.sync.client import connect
from websockets.typing import Origin

from console import gate
from console.__main__ import server_config
from console.errors import TooManyError
from console.gate import Gate
from console.login import COOKIE, Sessions
from console.services import rate_limiter
from console.services.rate_limiter import RateLimiter, WrongKeys
from console.services.shares import Share
from tasks.settings.settings import Settings
from tasks.state.connection import connect as connect_to_broker
from tests.console.conftest import Console, Served

ORIGIN = {"Origin": "http://localhost"}


@pytest.fixture
def anyone(console: Console) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=console.url) as client:
        yield client


def log_in(client: httpx2.Client, console: Console, key: str) -> httpx2.Response:
    return client.post("/login", data={"key": key}, headers={"Origin": console.url})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/wp-admin.php", 404),
        ("GET", "/_nicegui/none", 404),
        ("GET", "/jobs", 307),
        ("GET", "/jobs/some-job", 307),
        ("GET", "/compare", 307),
        ("HEAD", "/", 307),
        ("GET", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", 401),
        ("POST", "/_nicegui/client/some-page/upload/7", 401),
        ("POST", "/v1/jobs", 401),
        ("GET", "/v1/none", 401),
    ],
)
def test_no_page_is_built_without_a_session(
    anyone: httpx2.Client, method: str, path: str, status: int
) -> None:
    before = set(Client.instances)
    answer = anyone.request(method, path)
    assert answer.status_code == status
    assert len(answer.content) < 500
    assert set(Client.instances) <= before


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/uploads/x", "/_nicegui/client/x/upload/1"])
def test_a_body_is_not_read_before_the_key(served: Served, path: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def ask() -> int:
        transport = httpx2.ASGITransport(Gate(answer_length, served.services))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.post(path, content=body())).status_code

    assert asyncio.run(ask()) == 401


def test_a_session_has_the_allowance_of_its_key(
    console: Console, anyone: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = RateLimiter(console.redis, "api", 4)
    monkeypatch.setitem(vars(console.services), "api_limiter", limiter)
    log_in(anyone, console, console.keys["acme"])
    with console.client("acme") as by_key, console.client("zoo") as other:
        assert anyone.get("/v1/jobs").headers["ratelimit-remaining"] == "3"
        assert anyone.get("/jobs").headers["ratelimit-remaining"] == "2"
        assert by_key.get("/jobs").headers["ratelimit-remaining"] == "1"
        assert anyone.get("/v1/jobs").status_code == 200
        for path in ("/v1/jobs", "/jobs", "/new"):
            refused = anyone.get(path)
            assert refused.status_code == 429, path
            assert int(refused.headers["retry-after"]) > 0
        assert by_key.get("/jobs").status_code == 429
        assert other.get("/jobs").status_code == 200


def test_open_pages_of_one_account_leave_room_for_others(
    console: Console, anyone: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = Share("pages", 4, always=1)
    monkeypatch.setitem(vars(console.services), "open_pages", pages)
    log_in(anyone, console, console.keys["acme"])
    assert [anyone.get("/jobs").status_code for _ in range(3)] == [200, 200, 429]
    log_in(anyone, console, console.keys["zoo"])
    assert anyone.get("/jobs").status_code == 200
    before = pages._held.total()
    for client in list(Client.instances.values()):
        client.delete()
    assert (before, pages._held.total()) == (3, 0)


def test_files_of_pages_share_the_disk(served: Served) -> None:
    assert served.settings.upload_max_bytes == 1_000_000
    path = "/_nicegui/client/a-page/upload/7"

    async def use() -> None:
        done = asyncio.Event()

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            await done.wait()
            await PlainTextResponse("done")(scope, receive, send)

        transport = httpx2.ASGITransport(Gate(wait, served.services))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:

            def send(who: str) -> asyncio.Task[httpx2.Response]:
                cookie = served.services.sessions.start(served.keys[who])
                headers = {**ORIGIN, "Cookie": f"{COOKIE}={cookie}"}
                content = b"x" * 1_900_000
                return asyncio.create_task(client.post(path, content=content, headers=headers))

            finished = asyncio.as_completed([send("acme") for _ in range(3)])
            assert (await next(finished)).status_code == 429
            other = send("zoo")
            done.set()
            assert [(await it).status_code for it in finished] == [200] * 2
            assert (await other).status_code == 200

    asyncio.run(use())


def test_wrong_keys_do_not_lock_right_ones_out(console: Console, anyone: httpx2.Client) -> None:
    wrong = {"Authorization": "Bearer twk_" + "A" * 43}
    statuses = [anyone.get("/v1/jobs", headers=wrong).status_code for _ in range(70)]
    assert statuses == [401] * 60 + [429] * 10
    refused = log_in(anyone, console, "twk_wrong")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    right = log_in(anyone, console, console.keys["acme"])
    assert (right.status_code, right.headers["location"]) == (303, "/")
    assert anyone.get("/v1/jobs").status_code == 200


def test_wrong_keys_of_many_addresses_are_limited_for_all_consoles(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limiter, "_WRONG_KEYS", 20)
    consoles, refused = [WrongKeys(redis_client), WrongKeys(redis_client)], 0

    async def count() -> None:
        nonlocal refused
        for number in range(30):
            try:
                await consoles[number % 2].count(f"10.0.0.{number}")
            except TooManyError:
                refused += 1

    asyncio.run(count())
    assert refused == 10


def test_a_forwarded_address_is_not_believed(anyone: httpx2.Client) -> None:
    wrong = {"Authorization": "Bearer twk_x"}
    for number in range(60):
        forwarded = {**wrong, "X-Forwarded-For": f"10.0.0.{number}"}
        assert anyone.get("/v1/jobs", headers=forwarded).status_code == 401
    assert anyone.get("/v1/jobs", headers=forwarded).status_code == 429


def test_a_trusted_proxy_forwards_addresses(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.__main__.make_app", lambda _services: answer_length)
    settings = served.settings.model_copy(update={"trusted_proxies": "127.0.0.1, 10.0.0.0/8"})
    config = server_config(replace(served.services, settings=settings))
    assert config.proxy_headers
    assert config.forwarded_allow_ips == ["127.0.0.1", "10.0.0.0/8"]
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies="*")


def test_a_forwarded_prefix_is_not_believed(console: Console, anyone: httpx2.Client) -> None:
    log_in(anyone, console, console.keys["acme"])
    page = anyone.get("/jobs", headers={"X-Forwarded-Prefix": "/evil"})
    assert page.status_code == 200
    assert "evil" not in page.text


def test_headers_do_not_grow_without_end(console: Console) -> None:
    with socket.create_connection(("127.0.0.1", int(console.url.rpartition(":")[2]))) as raw:
        raw.settimeout(10)
        raw.sendall(b"GET /v1/health HTTP/1.1\r\nX-Long: " + b"x" * 40_000)
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


async def _body_length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def answer_length(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await _body_length(Request(scope, receive))
    except HTTPException as error:
        response = PlainTextResponse(error.detail, error.status_code)
    await response(scope, receive, send)


async def pieces(length: int) -> AsyncIterator[bytes]:
    for _ in range(length // 1000):
        yield b"x" * 1000


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/v1/jobs", 1_000_000, 200),
        ("/v1/jobs", 1_100_000, 413),
        ("/login", 8_000, 200),
        ("/login", 9_000, 413),
        ("/_nicegui/client/a-page/upload/7", 2_000_000, 200),
        ("/_nicegui/client/a-page/upload/7", 2_100_000, 413),
        ("/v1/uploads/x", 2_000_000, 200),
    ],
)
def test_bodies_are_bounded_with_and_without_length(
    served: Served, path: str, length: int, status: int
) -> None:
    assert served.settings.upload_max_bytes == 1_000_000

    async def use() -> None:
        app = Gate(answer_length, served.services)
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            cookie = served.services.sessions.start(served.keys["acme"])
            headers = {**ORIGIN, "Cookie": f"{COOKIE}={cookie}"}
            for content in (b"x" * length, pieces(length)):
                answer = await client.post(path, content=content, headers=headers)
                assert answer.status_code == status

    asyncio.run(use())


def test_a_body_that_trickles_ends(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_BODY_TIMEOUT_S", 0.05)

    async def trickle() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    statuses = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/login", "headers": []}
    asyncio.run(Gate(answer_length, served.services)(scope, trickle, send))
    assert statuses[0] == 408


def test_an_account_cannot_hold_all_requests(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_MAX_REQUESTS", 20)

    async def use() -> None:
        done = asyncio.Event()

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            await done.wait()
            await PlainTextResponse("done")(scope, receive, send)

        transport = httpx2.ASGITransport(Gate(wait, served.services))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:

            def ask(who: str) -> asyncio.Task[httpx2.Response]:
                headers = {"Authorization": f"Bearer {served.keys[who]}"}
                return asyncio.create_task(client.get("/v1/jobs", headers=headers))

            held = [ask("acme") for _ in range(12)]
            finished = asyncio.as_completed(held)
            refused = [await next(finished) for _ in range(2)]
            assert [answer.status_code for answer in refused] == [429] * 2
            other = ask("zoo")
            done.set()
            assert [(await it).status_code for it in finished] == [200] * 10
            assert (await other).status_code == 200

    asyncio.run(use())


def socket_scope(cookie: str | None, origin: str = "http://localhost") -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"origin", origin.encode())]
    if cookie is not None:
        headers.append((b"cookie", f"{COOKIE}={cookie}".encode()))
    return {"type": "websocket", "path": "/_nicegui_ws/socket.io/", "headers": headers}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    for _ in range(3):
        await send(await receive())


async def nothing() -> Message:
    return {"type": "websocket.receive", "text": "x"}


def test_only_pages_of_the_console_open_sockets(served: Served) -> None:
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def use() -> None:
        cookie = served.services.sessions.start(served.keys["acme"])
        app = Gate(echo, served.services)
        for scope in (socket_scope(cookie, "http://evil.example"), socket_scope(cookie, "null")):
            await app(scope, nothing, send)
        assert sent == ["websocket.close"] * 2
        await app(socket_scope(cookie), nothing, send)
        assert sent[2:] == ["websocket.receive"] * 3

    asyncio.run(use())


def test_a_page_without_a_session_is_reloaded(anyone: httpx2.Client, console: Console) -> None:
    """NiceGUI's script reloads the page at this message, and the reload leads to the login page."""
    query = "EIO=4&transport=websocket&implicit_handshake=true&client_id=x&tab_id=1&document_id=2"
    url = f"{console.url.replace('http', 'ws', 1)}/_nicegui_ws/socket.io/?{query}"
    with connect(url, origin=Origin(console.url), proxy=None) as page:
        assert str(page.recv(10)).startswith("0{")
        page.send("40")
        assert page.recv(10) == '44{"message":"Implicit handshake failed"}'
    assert anyone.get("/jobs").headers["location"] == "/login?next=%2Fjobs"


def test_messages_beyond_the_allowance_wait(
    console: Console, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = RateLimiter(console.redis, "api", 600)
    monkeypatch.setitem(vars(console.services), "api_limiter", limiter)
    while not limiter.local.take("acme").retry_after_s:
        """Use up the allowance."""
    arrived: list[float] = []

    async def note(_message: Message) -> None:
        arrived.append(time.monotonic())

    async def use() -> None:
        cookie = served.services.sessions.start(served.keys["acme"])
        await Gate(echo, served.services)(socket_scope(cookie), nothing, note)

    began = time.monotonic()
    asyncio.run(use())
    assert len(arrived) == 3
    assert arrived[0] - began >= 0.1


def test_without_the_broker_sessions_are_answered_503(
    console: Console, anyone: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(anyone, console, console.keys["acme"])
    away = Sessions(connect_to_broker("redis://127.0.0.1:9"), console.services.api_keys)
    monkeypatch.setitem(vars(console.services), "sessions", away)
    refused = anyone.get("/v1/jobs")
    assert (refused.status_code, refused.json()["code"]) == (503, "no_broker")
    assert refused.headers["retry-after"] == "5"
    page = anyone.get("/jobs")
    assert (page.status_code, page.text) == (503, "the broker is unavailable\n")
    # A key needs no session.
    key = {"Authorization": f"Bearer {console.keys['acme']}"}
    assert anyone.get("/v1/jobs", headers=key).status_code == 200


def test_a_lost_sender_is_no_error(served: Served) -> None:
    async def lost() -> Message:
        return {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/login", "headers": []}
    asyncio.run(Gate(answer_length, served.services)(scope, lost, send))
    assert not sent


def test_unreadable_api_keys_are_answered_503(console: Console, anyone: httpx2.Client) -> None:
    path = console.settings.api_keys_file
    whole = path.read_bytes()
    path.write_text("[{")
    try:
        for address in ("/v1/jobs", "/v1/jobs/a/files/b?signature=c"):
            key = {"Authorization": f"Bearer {console.keys['acme']}"}
            refused = anyone.get(address, headers=key)
            document = refused.json()
            assert (refused.status_code, document["code"]) == (503, "api_keys_unavailable")
            assert document["retryable"]
            assert str(path) not in refused.text
    finally:
        path.write_bytes(whole)
    assert anyone.get("/v1/jobs", headers=key).status_code == 200
