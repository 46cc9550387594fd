import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest
from pydantic import ValidationError
from redis import Redis
from standardwebhooks import Webhook, WebhookVerificationError

from tasks.errors import ErrorCode, JobError
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.control import JobControl
from tasks.state.job_store import JobStore
from worker.maintenance.webhooks import Webhooks

OLD, NEW = (f"whsec_{b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))


class Receiver(ThreadingHTTPServer):
    """A backend that keeps the deliveries and responds as configured."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/hook"
        self.received: list[tuple[dict[str, str], str]] = []
        self.status, self.headers = 204, dict[str, str]()
        self.slow_s = 0.0
        self.sent_for = dict[str, Callable[[Handler], Iterator[bytes]]]()
        """What a job's webhook is answered with, until its sender closes the connection."""
        self.ended = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
        send = self.server.sent_for.get(json.loads(body)["data"]["job_id"])
        if send is not None:
            with suppress(OSError):
                for part in send(self):
                    self.wfile.write(part)
            return
        time.sleep(self.server.slow_s)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def webhooks(redis_client: Redis, state: JobStore, receiver: Receiver) -> Iterator[Webhooks]:
    webhooks = Webhooks(redis_client, state, receiver.url, [OLD, NEW])
    yield webhooks
    receiver.ended.set()
    webhooks._pool.shutdown()


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document, state, "result").job_id


def deliver(webhooks: Webhooks) -> list[str]:
    """Deliver what is due; return the jobs whose webhook was accepted."""
    return [job_id for job_id, delivery in webhooks.deliver_due().items() if delivery.result(30)]


def fail(state: JobStore, job_id: str) -> None:
    token = state.begin(job_id, "prepare", worker="w", queue="q", tag="t")[1]
    state.fail(job_id, token, JobError("cat.png", ErrorCode.INTERNAL, "prepare"))


def make_due(redis_client: Redis, job_id: str) -> float:
    """Make a webhook due; return the seconds until it would have been."""
    due_at = redis_client.zscore("training:webhooks", job_id)
    assert due_at is not None
    redis_client.zadd("training:webhooks", {job_id: time.time() - 1})
    return float(due_at) - time.time()


def test_an_end_is_delivered_once_and_signed_with_every_secret(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    assert deliver(webhooks) == []
    fail(state, job_id)
    assert deliver(webhooks) == [job_id]
    assert deliver(webhooks) == []
    [(headers, body)] = receiver.received
    for secret in (OLD, NEW):
        document = Webhook(secret).verify(body, headers)
    assert document["type"] == "job.failed"
    assert document["data"]["job_id"] == job_id
    assert document["data"]["error"] == {
        "code": "internal",
        "stage": "prepare",
        "message": "cat.png",
    }
    assert headers["webhook-id"] == f"msg_{job_id}_1"
    stranger = f"whsec_{b64encode(bytes(24)).decode()}"
    with pytest.raises(WebhookVerificationError):
        Webhook(stranger).verify(body, headers)
    assert redis_client.exists("training:webhooks", "training:webhooks:deliveries") == 0


def test_signatures_match_the_specifications_example() -> None:
    signer = Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, UTC)
    signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_every_kind_of_end_is_delivered(
    webhooks: Webhooks, state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    cancelled, exhausted, waiting = (submit(job_document, state, "r").job_id for _ in range(3))
    JobControl(redis_client, timedelta(hours=1)).cancel(cancelled)
    for _ in range(6):
        state.begin(exhausted, "prepare", worker="w", queue="q", tag="t")
    state.begin(waiting, "prepare", worker="w", queue="q", tag="t")
    assert sorted(deliver(webhooks)) == sorted([cancelled, exhausted])


def test_the_end_of_a_newer_job_is_delivered(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    result = {"published": "p", "manifest": "m", "sha256": "0", "files": ["f"], "mood": "good"}
    fields: dict[Any, Any] = {"version": 99, "result": json.dumps(result)}
    redis_client.hset(f"training:job:{job_id}", mapping=fields)
    assert deliver(webhooks) == [job_id]
    [(_, body)] = receiver.received
    # And what this version adds to it.
    assert result.items() <= json.loads(body)["data"]["result"].items()


def test_a_failed_delivery_is_retried_under_the_same_id(
    webhooks: Webhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    job_id: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail(state, job_id)
    receiver.status = 500
    for delay_s in (5, 300):
        assert deliver(webhooks) == []
        assert 0.5 * delay_s < make_due(redis_client, job_id) < 1.15 * delay_s
    receiver.status, receiver.headers = 503, {"Retry-After": "77"}
    deliver(webhooks)
    assert 60 < make_due(redis_client, job_id) < 78
    receiver.status = 204
    assert deliver(webhooks) == [job_id]
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert OLD not in caplog.text


@pytest.mark.parametrize("status", [302, 404])
def test_redirects_and_errors_are_retried(
    webhooks: Webhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    job_id: str,
    status: int,
) -> None:
    fail(state, job_id)
    receiver.status, receiver.headers = status, {"Location": receiver.url}
    assert deliver(webhooks) == []
    assert len(receiver.received) == 1
    assert redis_client.zscore("training:webhooks", job_id) is not None


def test_a_receiver_that_is_gone_gets_no_more(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    receiver.status = 410
    assert deliver(webhooks) == []
    assert redis_client.exists("training:webhooks") == 0


def test_a_webhook_is_discarded_after_the_last_retry(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    receiver.status = 500
    for _ in range(9):
        deliver(webhooks)
        make_due(redis_client, job_id)
    deliver(webhooks)
    assert redis_client.exists("training:webhooks", "training:webhooks:deliveries") == 0
    assert len(receiver.received) == 10


def test_two_workers_do_not_deliver_the_same_end(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    receiver.slow_s = 0.3
    other = Webhooks(redis_client, state, receiver.url, [NEW])
    with ThreadPoolExecutor(2) as pool:
        delivered = list(pool.map(deliver, (webhooks, other)))
    assert sorted(delivered) == [[], [job_id]]
    assert len(receiver.received) == 1


def test_an_unreachable_receiver_is_retried(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    unreachable = Webhooks(redis_client, state, "http://127.0.0.1:9/", [NEW])
    assert deliver(unreachable) == []
    assert 1 < make_due(redis_client, job_id) < 6
    assert 0 < redis_client.ttl("training:webhooks:deliveries") <= 3600


OK = b"HTTP/1.1 200 OK\r\n"


def endless_body(handler: Handler) -> Iterator[bytes]:
    yield OK + b"\r\n"
    while True:
        yield bytes(65536)


def dripping_body(handler: Handler) -> Iterator[bytes]:
    yield OK + b"\r\n"
    while not handler.server.ended.wait(0.2):
        yield b"x"


def endless_headers(handler: Handler) -> Iterator[bytes]:
    yield OK
    while True:
        yield b"name: " + b"x" * 1000 + b"\r\n"


def dripping_headers(handler: Handler) -> Iterator[bytes]:
    yield OK
    while not handler.server.ended.wait(0.2):
        yield b"a: b\r\n"


def endless_hints(handler: Handler) -> Iterator[bytes]:
    while not handler.server.ended.wait(0.001):
        yield b"HTTP/1.1 103 Early Hints\r\n\r\n"


def nothing(handler: Handler) -> Iterator[bytes]:
    handler.server.ended.wait()
    yield b""


@pytest.mark.parametrize(
    ("send", "is_accepted"),
    [
        (endless_body, True),
        (dripping_body, True),
        (endless_headers, False),
        (dripping_headers, False),
        (endless_hints, False),
        (nothing, False),
    ],
)
def test_no_answer_delays_other_webhooks_or_fills_the_memory(
    webhooks: Webhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    job_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    send: Callable[[Handler], Iterator[bytes]],
    is_accepted: bool,
) -> None:
    monkeypatch.setattr("worker.maintenance.webhook_sender._DEADLINE_S", 1.5)
    fail(state, prompt := submit(job_document, state, "r").job_id)
    assert deliver(webhooks) == [prompt]  # everything is loaded
    before = psutil.Process().memory_info().rss
    hostile = [submit(job_document, state, "r").job_id for _ in range(4)]
    for job_id in hostile:
        receiver.sent_for[job_id] = send
        fail(state, job_id)
    deliveries = webhooks.deliver_due()
    assert list(deliveries) == hostile
    fail(state, prompt := submit(job_document, state, "r").job_id)
    began_s = time.monotonic()
    assert webhooks.deliver_due()[prompt].result(5)
    assert [delivery.result(10) for delivery in deliveries.values()] == [is_accepted] * 4
    assert time.monotonic() - began_s < 8
    assert psutil.Process().memory_info().rss - before < 20 * 2**20
    assert (redis_client.zcard("training:webhooks") == 0) == is_accepted


def test_a_webhook_that_cannot_be_made_delays_no_other(
    webhooks: Webhooks, state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    broken = [submit(job_document, state, "r").job_id for _ in range(40)]
    for job_id in broken:
        fail(state, job_id)
        redis_client.hset(f"training:job:{job_id}", "result", "no JSON")
    fail(state, last := submit(job_document, state, "r").job_id)
    assert [*deliver(webhooks), *deliver(webhooks)] == [last]
    for job_id in broken:
        assert 1 < make_due(redis_client, job_id) < 6


def test_without_an_address_webhooks_are_discarded(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    assert Webhooks(redis_client, state, None, []).deliver_due() == {}
    assert redis_client.exists("training:webhooks") == 0


@pytest.mark.parametrize(
    ("url", "secrets", "said"),
    [
        ("http://example.com/", NEW, "is neither an https:// address"),
        ("ftp://localhost/", NEW, "is neither an https:// address"),
        ("https://example.com/", None, "is required with TRAINING_WEBHOOK_URL"),
        ("https://example.com/", "whsec_%%", "secret 1 is not whsec_"),
        ("https://example.com/", f"{NEW},whsec_AAAA", "secret 2 is not whsec_"),
    ],
)
def test_invalid_settings_are_refused_without_showing_secrets(
    url: str, secrets: str | None, said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(webhook_url=url, webhook_secrets=secrets)
    assert said in str(caught.value)
    assert NEW not in str(caught.value)
