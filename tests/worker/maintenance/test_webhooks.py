import json
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
        time.sleep(self.server.slow_s)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def webhooks(redis_client: Redis, state: JobStore, receiver: Receiver) -> Webhooks:
    return Webhooks(redis_client, state, receiver.url, [OLD, NEW])


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document, state, "result").job_id


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
    assert webhooks.deliver_due() == []
    fail(state, job_id)
    assert webhooks.deliver_due() == [job_id]
    assert webhooks.deliver_due() == []
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
    assert sorted(webhooks.deliver_due()) == sorted([cancelled, exhausted])


def test_the_end_of_a_newer_job_is_delivered(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    result = {"published": "p", "manifest": "m", "sha256": "0", "files": ["f"], "mood": "good"}
    fields: dict[Any, Any] = {"version": 99, "result": json.dumps(result)}
    redis_client.hset(f"training:job:{job_id}", mapping=fields)
    assert webhooks.deliver_due() == [job_id]
    [(_, body)] = receiver.received
    assert json.loads(body)["data"]["result"] == result


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
        assert webhooks.deliver_due() == []
        assert 0.5 * delay_s < make_due(redis_client, job_id) < 1.15 * delay_s
    receiver.status, receiver.headers = 503, {"Retry-After": "77"}
    webhooks.deliver_due()
    assert 60 < make_due(redis_client, job_id) < 78
    receiver.status = 204
    assert webhooks.deliver_due() == [job_id]
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
    assert webhooks.deliver_due() == []
    assert len(receiver.received) == 1
    assert redis_client.zscore("training:webhooks", job_id) is not None


def test_a_receiver_that_is_gone_gets_no_more(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    receiver.status = 410
    assert webhooks.deliver_due() == []
    assert redis_client.exists("training:webhooks") == 0


def test_a_webhook_is_discarded_after_the_last_retry(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    receiver.status = 500
    for _ in range(9):
        webhooks.deliver_due()
        make_due(redis_client, job_id)
    webhooks.deliver_due()
    assert redis_client.exists("training:webhooks", "training:webhooks:deliveries") == 0
    assert len(receiver.received) == 10


def test_two_workers_do_not_deliver_the_same_end(
    webhooks: Webhooks, state: JobStore, receiver: Receiver, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    receiver.slow_s = 0.3
    other = Webhooks(redis_client, state, receiver.url, [NEW])
    with ThreadPoolExecutor(2) as pool:
        delivered = list(pool.map(lambda each: each.deliver_due(), (webhooks, other)))
    assert sorted(delivered) == [[], [job_id]]
    assert len(receiver.received) == 1


def test_an_unreachable_receiver_is_retried(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    unreachable = Webhooks(redis_client, state, "http://127.0.0.1:9/", [NEW])
    assert unreachable.deliver_due() == []
    assert 1 < make_due(redis_client, job_id) < 6
    assert 0 < redis_client.ttl("training:webhooks:deliveries") <= 3600


def test_without_an_address_webhooks_are_discarded(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    fail(state, job_id)
    assert Webhooks(redis_client, state, None, []).deliver_due() == []
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
