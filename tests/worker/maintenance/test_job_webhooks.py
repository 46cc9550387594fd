import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis
from standardwebhooks import Webhook

from tasks import events
from tasks.errors import ErrorCode, InvalidStateError, JobError
from tasks.metrics import JOB_WEBHOOKS
from tasks.stages.submit import submit
from tasks.state.artifacts import NO_ARTIFACTS
from tasks.state.control import JobControl
from tasks.state.counters import Counters
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore
from tasks.state.record import StageRecord
from tasks.state.tenants.webhook_secrets import WebhookSecrets
from tasks.state.webhook_deliveries import Delivery, WebhookDeliveries
from worker.maintenance.job_webhooks import JobWebhooks

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="makes a certificate by openssl"
)

HOUR = timedelta(hours=1)
LOCAL = frozenset({"localhost"})
ALL = ["accepted", "started", "progress", "sample", "checkpoint"]
PENDING = "training:webhooks:tenant:default"
FILE = events.Artifact(name="lamp.safetensors", key="jobs/x/lamp", sha256="0" * 64, size=9)
CHECKPOINT = events.CheckpointSaved(step=10, state_key="jobs/x/state", weights=FILE)
SAMPLE = events.ValidationImages(step=10, images=(FILE,))


class Receiver(ThreadingHTTPServer):
    """A backend with TLS that keeps the deliveries and responds as configured."""

    request_queue_size = 64

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://localhost:{self.server_port}/hook?token=secret"
        self.received: list[tuple[str, dict[str, str], str]] = []
        self.status, self.headers = 204, dict[str, str]()
        self.hanging, self.ended = threading.Event(), threading.Event()

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.received]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((self.path, headers, body))
        if self.path == "/hang":
            self.server.hanging.set()
            self.server.ended.wait()
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *kind, *named, *files], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def receiver(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    server = Receiver(*certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def secret(redis_client: Redis) -> str:
    return WebhookSecrets(redis_client).create("default")[1]


@pytest.fixture
def deliveries(redis_client: Redis) -> WebhookDeliveries:
    return WebhookDeliveries(redis_client, HOUR)


@pytest.fixture
def webhooks(
    redis_client: Redis, deliveries: WebhookDeliveries, receiver: Receiver
) -> Iterator[JobWebhooks]:
    webhooks = JobWebhooks(redis_client, deliveries, LOCAL, 1000)
    yield webhooks
    receiver.ended.set()
    webhooks._pool.shutdown()


Submit = Callable[..., str]


@pytest.fixture
def submit_job(
    state: JobStore, job_document: dict[str, Any], receiver: Receiver, secret: str
) -> Submit:
    """Submits a job with a webhook."""

    def submit_job(*wanted: str, url: str = receiver.url, tenant: str = "default") -> str:
        webhook = {"url": url, **({"events": list(wanted)} if wanted else {})}
        return submit({**job_document, "tenant": tenant, "webhook": webhook}, state, "r").job_id

    return submit_job


def run(webhooks: JobWebhooks) -> None:
    """Deliver what is due, and wait for the answers."""
    for delivery in webhooks.deliver_due():
        delivery.result(30)


def begin(state: JobStore, job_id: str) -> FencingToken:
    return state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t")[1]


def fail(state: JobStore, job_id: str) -> None:
    state.fail(job_id, begin(state, job_id), JobError("cat.png", ErrorCode.INTERNAL, "prepare"))


def make_due(redis_client: Redis, pending: str = PENDING) -> float:
    """Make a tenant's deliveries due; return the seconds until the first would have been."""
    entries = redis_client.zrange(pending, 0, -1, withscores=True)
    due = dict(cast("list[tuple[str, float]]", entries))
    tenant = pending.rpartition(":")[2]
    redis_client.zadd(pending, dict.fromkeys(due, 1.0))
    redis_client.zadd("training:webhooks:tenants", {tenant: 1.0})
    return min(due.values()) - time.time()


def test_each_event_is_delivered_once_and_signed(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
    secret: str,
) -> None:
    newer = WebhookSecrets(redis_client).create("default")[1]
    job_id = submit_job(*ALL, "succeeded")
    run(webhooks)
    token = begin(state, job_id)
    run(webhooks)
    progress = events.Progress(stage="prepare", done=1, total=2, unit="files")
    for event in (progress, SAMPLE, CHECKPOINT, events.Note(level="info", message="a note")):
        state.write(job_id, token, [event])
        run(webhooks)
    files = [f"outputs/{job_id}/lamp.safetensors"]
    result = {"published": "/store/p", "manifest": "/store/m", "sha256": "0", "files": files}
    record = StageRecord(queue="cpu", worker="w", attempt=1, started_at=0)
    state.finish_stage(job_id, token, "prepare", record, NO_ARTIFACTS, result)
    run(webhooks)
    run(webhooks)
    bodies = receiver.bodies()
    assert [body["type"] for body in bodies] == [f"job.{name}" for name in (*ALL, "succeeded")]
    assert [body["data"]["sequence"] for body in bodies] == list(range(1, 7))
    assert {body["data"]["job_id"] for body in bodies} == {job_id}
    assert bodies[4]["data"]["event"]["weights"]["name"] == "lamp.safetensors"
    assert bodies[5]["data"]["result"]["files"] == ["lamp.safetensors"]
    assert not {"published", "manifest"} & bodies[5]["data"]["result"].keys()
    assert "/store" not in receiver.received[5][2]
    path, headers, body = receiver.received[0]
    assert path == "/hook?token=secret"
    for each in (secret, newer):
        Webhook(each).verify(body, headers)
    assert headers["webhook-id"] == f"evt_{job_id}_1"
    assert redis_client.exists(PENDING, "training:webhooks:tenants") == 0


def test_by_default_only_the_end_is_delivered(
    webhooks: JobWebhooks, state: JobStore, receiver: Receiver, submit_job: Submit
) -> None:
    job_id = submit_job()
    fail(state, job_id)
    run(webhooks)
    [body] = receiver.bodies()
    assert body["type"] == "job.failed"
    assert body["data"]["error"] == {"code": "internal", "stage": "prepare", "message": "cat.png"}


def test_every_kind_of_end_is_delivered(
    webhooks: JobWebhooks,
    state: JobStore,
    redis_client: Redis,
    receiver: Receiver,
    submit_job: Submit,
) -> None:
    cancelled, exhausted, requeued = (submit_job() for _ in range(3))
    JobControl(redis_client, HOUR).cancel(cancelled)
    for _ in range(6):
        begin(state, exhausted)
    redis_client.hset(f"training:job:{requeued}", "unstarted", 3)
    assert not JobControl(redis_client, HOUR).requeue(requeued, 0, "prepare")
    run(webhooks)
    ends = {body["data"]["job_id"]: body["type"] for body in receiver.bodies()}
    assert ends == {cancelled: "job.cancelled", exhausted: "job.failed", requeued: "job.failed"}


def test_the_start_is_reported_once(
    webhooks: JobWebhooks, state: JobStore, receiver: Receiver, submit_job: Submit
) -> None:
    job_id = submit_job("started")
    begin(state, job_id)
    begin(state, job_id)
    run(webhooks)
    assert [body["type"] for body in receiver.bodies()] == ["job.started"]


def progress(state: JobStore, job_id: str, token: FencingToken, done: int) -> None:
    event = events.Progress(stage="prepare", done=done, total=9, unit="files")
    state.write(job_id, token, [event])


def test_progress_is_sampled_and_the_newest_counts(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
    deliveries: WebhookDeliveries,
) -> None:
    job_id = submit_job("progress")
    token = begin(state, job_id)
    progress(state, job_id, token, 1)
    progress(state, job_id, token, 2)
    receiver.status = 500
    run(webhooks)
    progress(state, job_id, token, 3)
    run(webhooks)
    assert [body["data"]["event"]["done"] for body in receiver.bodies()] == [2]
    redis_client.hset(f"training:job:{job_id}:deliveries", "progress_at", "1.0")
    receiver.status = 204
    progress(state, job_id, token, 4)
    make_due(redis_client)
    run(webhooks)
    assert [body["data"]["event"]["done"] for body in receiver.bodies()] == [2, 4]
    assert statuses(deliveries, job_id) == ["superseded", "delivered"]


def statuses(deliveries: WebhookDeliveries, job_id: str) -> list[str]:
    """Return the statuses of a job's deliveries, the oldest first."""
    return [delivery.status for delivery in reversed(deliveries.log(job_id))]


def last(deliveries: WebhookDeliveries, job_id: str) -> Delivery:
    return deliveries.log(job_id)[0]


@pytest.mark.parametrize(
    ("status", "headers", "min_s", "max_s"),
    [
        (500, {}, 1, 6),
        (302, {"Location": "https://localhost/"}, 1, 6),
        (429, {"Retry-After": "77"}, 60, 78),
        (503, {"Retry-After": "99999999999999999999"}, 80000, 86401),
    ],
)
def test_a_refused_delivery_is_retried_under_the_same_id(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
    deliveries: WebhookDeliveries,
    caplog: pytest.LogCaptureFixture,
    secret: str,
    status: int,
    headers: dict[str, str],
    min_s: float,
    max_s: float,
) -> None:
    caplog.set_level("INFO", "worker")
    fail(state, job_id := submit_job())
    receiver.status, receiver.headers = status, headers
    run(webhooks)
    run(webhooks)
    assert len(receiver.received) == 1
    delivery = last(deliveries, job_id)
    assert (delivery.status, delivery.attempts) == ("pending", 1)
    assert delivery.reason == f"status {status}"
    assert delivery.due_at is not None
    assert min_s < make_due(redis_client) < max_s
    receiver.status = 204
    run(webhooks)
    assert last(deliveries, job_id).status == "delivered"
    assert len({headers["webhook-id"] for _, headers, _ in receiver.received}) == 1
    assert "token=" not in caplog.text
    assert secret not in caplog.text


def test_a_receiver_that_is_gone_gets_no_more(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
    deliveries: WebhookDeliveries,
) -> None:
    job_id = submit_job("accepted", "failed")
    receiver.status = 410
    run(webhooks)
    fail(state, job_id)
    run(webhooks)
    assert statuses(deliveries, job_id) == ["exhausted"]
    assert redis_client.exists(PENDING) == 0


def test_an_exhausted_delivery_is_sent_again_by_command(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
    deliveries: WebhookDeliveries,
) -> None:
    fail(state, job_id := submit_job())
    receiver.status = 500
    for _ in range(9):
        run(webhooks)
        make_due(redis_client)
    run(webhooks)
    assert (last(deliveries, job_id).status, len(receiver.received)) == ("exhausted", 10)
    now = time.time()
    assert deliveries.redeliver(job_id, "default", None, now) == [1]
    receiver.status = 204
    run(webhooks)
    assert last(deliveries, job_id).status == "delivered"
    assert deliveries.redeliver(job_id, "default", None, now) == []
    assert deliveries.redeliver(job_id, "default", 1, now) == [1]
    run(webhooks)
    assert len(receiver.received) == 12
    with pytest.raises(InvalidStateError):
        deliveries.redeliver(job_id, "default", 2, now)


@pytest.mark.parametrize(
    ("url", "hosts", "reason"),
    [
        ("https://localhost:1/", frozenset(), "not public"),
        ("https://localhost:1/", LOCAL, "ConnectError"),
        ("https://no-such-host.invalid/", frozenset(), "ConnectError"),
    ],
)
def test_an_unreachable_or_private_receiver_gets_nothing(
    redis_client: Redis,
    deliveries: WebhookDeliveries,
    state: JobStore,
    submit_job: Submit,
    url: str,
    hosts: frozenset[str],
    reason: str,
) -> None:
    fail(state, job_id := submit_job(url=url))
    run(JobWebhooks(redis_client, deliveries, hosts, 1000))
    delivery = last(deliveries, job_id)
    assert delivery.status == "pending"
    assert reason in (delivery.reason or "")
    assert "127.0.0.1" not in (delivery.reason or "")


def test_a_receiver_without_a_trusted_certificate_gets_nothing(
    redis_client: Redis,
    deliveries: WebhookDeliveries,
    state: JobStore,
    receiver: Receiver,
    submit_job: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    fail(state, submit_job())
    run(JobWebhooks(redis_client, deliveries, LOCAL, 1000))
    assert receiver.received == []


def test_the_delivery_of_a_lost_worker_is_sent_by_another(
    redis_client: Redis,
    deliveries: WebhookDeliveries,
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    submit_job: Submit,
) -> None:
    fail(state, job_id := submit_job())
    now = time.time()
    assert deliveries.claim("default", now, now + 60) is not None  # and its worker is lost
    run(webhooks)
    assert receiver.received == []
    assert 50 < make_due(redis_client) < 61
    run(webhooks)
    assert (last(deliveries, job_id).status, last(deliveries, job_id).attempts) == ("delivered", 2)


def test_hanging_receivers_of_a_tenant_delay_no_other(
    redis_client: Redis,
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    submit_job: Submit,
) -> None:
    WebhookSecrets(redis_client).create("other")
    hanging = receiver.url.replace("/hook?token=secret", "/hang")
    for _ in range(40):
        fail(state, submit_job(url=hanging))
    held = webhooks.deliver_due()
    assert len(held) == 16
    assert receiver.hanging.wait(10)
    for _ in range(3):
        fail(state, submit_job(tenant="other"))
    for delivery in webhooks.deliver_due():
        if delivery not in held:
            delivery.result(10)
    assert [path for path, _, _ in receiver.received].count("/hook?token=secret") == 3
    assert not any(delivery.done() for delivery in held)
    receiver.ended.set()


def test_a_tenant_has_a_limit_of_deliveries_a_minute(
    redis_client: Redis,
    deliveries: WebhookDeliveries,
    state: JobStore,
    receiver: Receiver,
    submit_job: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.maintenance.job_webhooks._PERIOD_S", 10**10)
    for _ in range(4):
        fail(state, submit_job())
    limited = JobWebhooks(redis_client, deliveries, LOCAL, 3)
    run(limited)
    run(limited)
    assert len(receiver.received) == 3
    assert redis_client.zcard(PENDING) == 1


def test_too_many_pending_deliveries_are_dropped_but_the_end(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    submit_job: Submit,
    deliveries: WebhookDeliveries,
) -> None:
    job_id = submit_job("checkpoint", "failed")
    token = begin(state, job_id)
    state.write(job_id, token, [CHECKPOINT] * 350)
    state.fail(job_id, token, JobError("cat.png", ErrorCode.INTERNAL, "prepare"))
    found = statuses(deliveries, job_id)
    assert found.count("pending") == 101
    assert len(found) <= 300
    assert (last(deliveries, job_id).event, found[-1]) == ("failed", "pending")


def test_deliveries_without_a_secret_wait_for_one(
    redis_client: Redis,
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    submit_job: Submit,
    deliveries: WebhookDeliveries,
) -> None:
    fail(state, job_id := submit_job())
    secrets = WebhookSecrets(redis_client)
    secrets.revoke("default", secrets.entries("default")[0].id)
    run(webhooks)
    assert last(deliveries, job_id).reason == "the tenant has no webhook secret"
    assert receiver.received == []
    secret = secrets.create("default")[1]
    make_due(redis_client)
    run(webhooks)
    [(_, headers, body)] = receiver.received
    Webhook(secret).verify(body, headers)


def test_expired_jobs_leave_nothing_behind(
    webhooks: JobWebhooks, state: JobStore, redis_client: Redis, submit_job: Submit
) -> None:
    fail(state, job_id := submit_job())
    assert all(
        0 < redis_client.ttl(key) <= 3600
        for key in redis_client.scan_iter("training:*")
        if "webhooks" in key or "deliveries" in key
    )
    redis_client.delete(f"training:job:{job_id}")
    assert webhooks.deliver_due() == []
    assert redis_client.exists(PENDING, "training:webhooks:tenants") == 0


def test_an_unreadable_delivery_delays_no_other(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
) -> None:
    for field in ("webhook", "deliveries"):
        fail(state, job_id := submit_job())
        if field == "webhook":
            redis_client.hset(f"training:job:{job_id}", "webhook", '{"version": 3}')
        else:
            redis_client.hset(
                f"training:job:{job_id}:deliveries", "1", '{"event": "new", "attempts": 0}'
            )
    fail(state, last_id := submit_job())
    run(webhooks)
    assert [body["data"]["job_id"] for body in receiver.bodies()] == [last_id]


@pytest.mark.parametrize("broken", ["text", "attempts", "deliveries", "member"])
def test_a_broken_delivery_delays_no_other_of_its_tenant(
    webhooks: JobWebhooks,
    state: JobStore,
    receiver: Receiver,
    redis_client: Redis,
    submit_job: Submit,
    broken: str,
) -> None:
    fail(state, job_id := submit_job())
    log = f"training:job:{job_id}:deliveries"
    if broken == "deliveries":
        redis_client.set(log, "no hash", ex=60)
    elif broken == "member":
        redis_client.zadd(PENDING, {"odd": 1.0})
    else:
        redis_client.hset(log, "1", "no JSON" if broken == "text" else '{"attempts": null}')
    fail(state, submit_job())
    run(webhooks)
    assert len(receiver.received) == (2 if broken == "member" else 1)
    assert redis_client.exists(PENDING) == 0


@pytest.mark.parametrize("broken", ["pending", "deliveries"])
def test_deliveries_that_cannot_be_written_stop_no_job(
    state: JobStore, redis_client: Redis, submit_job: Submit, broken: str
) -> None:
    job_id = submit_job("started", "failed")
    key = PENDING if broken == "pending" else f"training:job:{job_id}:deliveries"
    redis_client.set(key, "of another type", ex=60)
    begin(state, job_id)
    JobControl(redis_client, HOUR).cancel(job_id)
    assert redis_client.hget(f"training:job:{job_id}", "status") == "cancelling"
    counts = Counters(redis_client, HOUR).read()
    assert JOB_WEBHOOKS.one("dropped").items() <= counts.items()


def test_a_late_answer_leaves_the_log_short(
    state: JobStore, redis_client: Redis, submit_job: Submit, deliveries: WebhookDeliveries
) -> None:
    job_id = submit_job("accepted")
    now = time.time()
    claimed = deliveries.claim("default", now, now + 60)
    assert claimed is not None
    redis_client.hset(f"training:job:{job_id}:deliveries", "sequence", 300)
    deliveries.record(claimed, "delivered", "accepted", now=now)
    assert deliveries.log(job_id) == []


def test_the_log_skips_what_cannot_be_read(
    redis_client: Redis, submit_job: Submit, deliveries: WebhookDeliveries
) -> None:
    job_id = submit_job("accepted")
    log = f"training:job:{job_id}:deliveries"
    redis_client.hset(log, items=["2", "no JSON", "3", '{"event": "new", "status": "exhausted"}'])
    assert [delivery.sequence for delivery in deliveries.log(job_id)] == [1]
    assert deliveries.redeliver(job_id, "default", 1, time.time()) == [1]
