"""Every Lua script on a real broker: state before, call, recorded reply and recorded changes.

``recorded_calls.json`` holds the replies and changes. Record them again only for a wanted change of
behavior: ``RECORD_CALLS=1 pytest tests/tasks/state/test_scripts.py``.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis

from routing.classes import GpuPrices, MemoryClass
from routing.queues import ALL_QUEUES
from tasks import events
from tasks.cache.index import PackIndex
from tasks.errors import ErrorCode, JobError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.webhook import JobWebhook
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.audit import Action, AuditLog
from tasks.state.control import JobControl
from tasks.state.deletions import Deletions
from tasks.state.ended_jobs import EndedJobs
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore
from tasks.state.record import VERSION, StageRecord, parse_record, parse_summary
from tasks.state.stage_message import StageMessage
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.webhook_deliveries import WebhookDeliveries
from worker.kombu_redis.redelivery import Redelivery
from worker.kombu_redis.transport import Keys
from worker.kombu_redis.unreadable import UnreadableMessages
from worker.maintenance.webhooks import Webhooks

RECORDED = Path(__file__).with_name("recorded_calls.json")
HOUR = timedelta(hours=1)
NOTE = events.Note(level="info", message="a note")
LEFT = JobArtifacts(dataset="key")
STAGE = StageRecord(queue="q", worker="w", attempt=1, started_at=0, seconds=1.5, summary="s")
# The hash of a job whose first stage waits in the queue.
QUEUED = {
    "status": "queued",
    "stage": "prepare",
    "stage_number": "0",
    "stage_state": "queued",
    "attempt": "0",
    "type": "FLUX_LORA",
    "version": str(VERSION),
    "tenant": "a",
    "priority": "0",
    "result_id": "result",
    "gpu_queue": "gpu.40gb",
    "reason": "a reason",
    "created_at": "1000.000000",
    "updated_at": "1000.000000",
}
RUNNING = QUEUED | {
    "status": "running",
    "stage_number": "1",
    "stage_state": "running",
    "attempt": "3",
    "delivery_tag": "tag",
    "starts": "1",
    "stage:prepare": '{"queue":"cpu","worker":"w","attempt":3,"started_at":1000}',
}
NEWEST, OLDER = FencingToken(3, "tag"), FencingToken(2, "tag")
REPEATED = FencingToken(3, "another")
"""The number of a start whose increment a failover lost, given again."""
BETWEEN = RUNNING | {"stage_state": "done"}
TRAINING = RUNNING | {"stage": "train", "stage_number": "3"}
ON_GPU = RUNNING | {
    "stage": "cache",
    "stage_number": "2",
    "stage:cache": '{"queue":"gpu.40gb","worker":"w","attempt":3,"started_at":1000}',
    "gpu_start": "40gb 1.8 EUR 1000.000000",
    "alive_at": "1100.000000",
}
ENDED = BETWEEN | {"status": "failed", "error": "e", "error_code": "internal", "error_stage": "x"}
TOMBSTONE = {"status": "deleted", "tenant": "a", "deleted_at": "1000.000000", "remains": "[]"}
IN_FLIGHT = "training:jobs:in_flight"
DUE = "training:jobs:due"
DEAD = "training:jobs:dead_letters"
WEBHOOKS = "training:webhooks"
FLEET = "training:fleet"
TENANT_QUEUES = "training:tenant_queues"
SINCE = "training:tenant_queues_since"


TENANTS = "training:webhooks:tenants"
PENDING = "training:webhooks:tenant:a"
DELIVERIES = "training:job:one:deliveries"
HOOKED = {
    "webhook": json.dumps(
        {
            "url": "https://hooks.example/",
            "events": ["started", "progress", "checkpoint", "cancelled"],
            "progress_interval": 60,
        }
    )
}
PROGRESS = events.Progress(stage="prepare", done=1, total=2, unit="files")
PENDING_PROGRESS = (
    '{"event":"progress","at":"1000.000000","text":"{}","status":"pending","attempts":0}'
)
FILE = events.Artifact(name="a", key="a", sha256="0" * 64, size=1)
CHECKPOINT = events.CheckpointSaved(step=1, state_key="a", weights=FILE)


@dataclass
class Fleet:
    """All callers of scripts, on one broker."""

    redis: Redis
    job: TrainingJob

    def __post_init__(self) -> None:
        self.state = JobStore(self.redis, HOUR)
        self.control = JobControl(self.redis, HOUR)
        self.queues = TenantQueues(self.redis, HOUR)
        self.deliveries = WebhookDeliveries(self.redis, HOUR)
        self.cache = PackIndex(self.redis, HOUR, HOUR)
        self.ended = EndedJobs(self.redis, HOUR)
        self.deletions = Deletions(self.redis, HOUR)

    def begin(self, stage: str = "prepare", tag: str = "new", **more: Any) -> object:
        return self.state.begin("one", stage, worker="w2", queue="q", tag=tag, **more)[:2]

    def begin_on_gpu(self) -> object:
        """Begin ``cache`` on a GPU that has a price."""
        prices = GpuPrices({MemoryClass.GB40: 1.8}, "EUR")
        state = JobStore(self.redis, HOUR, prices=prices)
        return state.begin("one", "cache", worker="w2", queue="gpu.40gb", tag="new")[:2]

    def finish(self, token: FencingToken, **more: Any) -> object:
        return self.state.finish_stage("one", token, "prepare", STAGE, LEFT, None, **more)


@dataclass
class Case:
    """A call of a script.

    Attributes:
        call: The call.
        job: The fields of the job's hash before; None for no job.
        before: Other keys: sorted sets with scores, hashes, sets and strings.
        room: How many messages each queue may hold; None if no worker is live.
        limit: The most jobs in flight of tenant ``a``.
    """

    call: Callable[[Fleet], object]
    job: Mapping[str, str] | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    room: int | None = 1000
    limit: str | None = None


def in_flight(**more: Any) -> dict[str, Any]:
    return {IN_FLIGHT: {"one": "a"}, **more}


def in_tenant_queue(queue: str = "cpu") -> dict[str, Any]:
    return {
        TENANT_QUEUES: {queue},
        f"{TENANT_QUEUES}:{queue}": {"a": 5.0},
        f"{TENANT_QUEUES}:{queue}:a": {"one": 9e10 + 1000},
        f"{SINCE}:{queue}:a": {"one": 1000.0},
    }


def quotas(tenant: str = "a", **quota: Any) -> dict[str, Any]:
    return {"training:quotas": {tenant: json.dumps(quota)}}


def used(**amounts: int) -> dict[str, Any]:
    """What tenant ``a`` has used this month."""
    month = f"{datetime.now(UTC):%Y-%m}"
    fields = {name: str(amount) for name, amount in amounts.items()}
    return {f"training:usage:{month}:a": fields}


def held(tag: str = "tag") -> dict[str, Any]:
    return {"unacked_index": {tag: 1.0}}


def following(queue: str) -> StageMessage:
    return StageMessage(queue, "the next message")


def create(fleet: Fleet) -> object:
    return fleet.state.create("one", fleet.job, "result", JobArtifacts(read_roots=("somewhere",)))


def fail(code: ErrorCode, token: FencingToken = NEWEST) -> Callable[[Fleet], object]:
    error = JobError("it broke", code, "prepare")
    return lambda fleet: fleet.state.fail("one", token, error, {"a|b": 2})


def claim_webhook(fleet: Fleet) -> object:
    webhooks = Webhooks(fleet.redis, fleet.state, "http://127.0.0.1:9", ["whsec_c2VjcmV0"])
    return webhooks._claim("one", 2000.0)


def create_with_webhook(fleet: Fleet) -> object:
    webhook = JobWebhook(url="https://hooks.example/", events=("accepted",))
    job = fleet.job.model_copy(update={"webhook": webhook})
    return fleet.state.create("one", job, "result")


def redeliver(fleet: Fleet) -> object:
    return Redelivery(
        fleet.redis,
        timedelta(seconds=60),
        Keys.of({}),
        UnreadableMessages(fleet.redis, "unreadable"),
    ).redeliver_expired()


def renew(fleet: Fleet) -> object:
    return fleet.control.renew_keys()


def record_copies(fleet: Fleet) -> object:
    summary = parse_summary("one", ENDED | {"job": fleet.job.model_dump_json(), "result": "{}"})
    copy = events.PublishedCopy(type="HUB", target="me/lamp", commit="c")
    fleet.ended.record_copies(summary, (copy,))
    return None


def hold_results(fleet: Fleet) -> object:
    return fleet.ended._hold("one", 60)


def delete(fleet: Fleet) -> object:
    fields = ENDED | {"job": fleet.job.model_dump_json()}
    return fleet.deletions.delete(parse_record("one", fields), ["jobs/one/"])


def restore(fleet: Fleet) -> object:
    fields = {**ENDED, "job": fleet.job.model_dump_json()}
    ends = (NOTE, PROGRESS, events.JobEnded(status="failed"))
    positioned = [(f"{number + 1}-0", event.model_dump_json()) for number, event in enumerate(ends)]
    return fleet.ended.restore("one", fields, positioned, 600)


MESSAGE = {"headers": {"id": "message"}, "properties": {"delivery_info": {}}, "body": ""}
RENEWALS = {"training:jobs:renewals": {"one a": 1000.0}}
JOBS, TENANT_JOBS = "training:jobs", "training:tenant_jobs:"
PROGRESS = events.Progress(stage="prepare", done=1, total=2, unit="files")
UNACKED = {"unacked": {"tag": json.dumps([MESSAGE, "", "cpu"])}}
IN_TENANT_QUEUE = QUEUED | {"tenant_queue": "cpu"}
ENTRIES = "training:cache:entries"
CLAIM = "training:cache:claim:"
COUNTS = {"a|b": 2}

CASES: dict[str, Case] = {
    # Creating a job.
    "create": Case(create),
    "create existing": Case(create, QUEUED),
    "create without room": Case(create, room=0),
    "create without a fleet": Case(create, room=None),
    "create behind others": Case(
        create, before={TENANT_QUEUES: {"cpu"}, f"{TENANT_QUEUES}:cpu": {"b": 5.0}}
    ),
    "create at the limit": Case(create, before={IN_FLIGHT: {"x": "a", "y": "b"}}, limit="1"),
    "create below the limit": Case(create, before={IN_FLIGHT: {"y": "b"}}, limit="1"),
    # Beginning a stage.
    "begin unknown": Case(lambda fleet: fleet.begin()),
    "begin ended": Case(lambda fleet: fleet.begin(), ENDED),
    "begin first": Case(lambda fleet: fleet.begin(), QUEUED, in_flight()),
    "begin behind": Case(lambda fleet: fleet.begin(), TRAINING, in_flight()),
    "begin done": Case(lambda fleet: fleet.begin(), BETWEEN, in_flight()),
    "begin next": Case(lambda fleet: fleet.begin("cache"), BETWEEN | {"retries": "2"}, in_flight()),
    "begin ahead": Case(lambda fleet: fleet.begin("train"), BETWEEN, in_flight()),
    "begin ahead of running": Case(lambda fleet: fleet.begin("cache"), RUNNING, in_flight()),
    "begin held": Case(lambda fleet: fleet.begin(), RUNNING, in_flight() | held()),
    "begin lost": Case(lambda fleet: fleet.begin(), RUNNING, in_flight() | held("other")),
    "begin from its tenant queue": Case(
        lambda fleet: fleet.begin(), IN_TENANT_QUEUE, in_tenant_queue()
    ),
    "begin due": Case(lambda fleet: fleet.begin(), QUEUED | {"due_at": "5"}, {DUE: {"one": 5.0}}),
    "begin paused": Case(lambda fleet: fleet.begin(), QUEUED | {"status": "paused"}, in_flight()),
    "begin pausing": Case(
        lambda fleet: fleet.begin(), RUNNING | {"status": "pausing"}, in_flight()
    ),
    "begin newer job": Case(lambda fleet: fleet.begin(), QUEUED | {"version": "2"}, in_flight()),
    "begin newer job again": Case(
        lambda fleet: fleet.begin(), QUEUED | {"version": "2", "deferred_by": "w"}, in_flight()
    ),
    "begin newer message": Case(
        lambda fleet: fleet.begin(version=VERSION + 1, retry_in_s=60), RUNNING, in_flight()
    ),
    "begin without version": Case(
        lambda fleet: fleet.begin(),
        {k: v for k, v in QUEUED.items() if k != "version"},
        in_flight(),
    ),
    "begin exhausted": Case(lambda fleet: fleet.begin(), RUNNING | {"starts": "5"}, in_flight()),
    "begin cancelling": Case(lambda fleet: fleet.begin(), RUNNING | {"status": "cancelling"}),
    # Writes of a start.
    "write": Case(
        lambda fleet: fleet.state.write("one", NEWEST, [NOTE, NOTE], LEFT, COUNTS), RUNNING
    ),
    "write no fields": Case(lambda fleet: fleet.state.write("one", NEWEST, [NOTE]), RUNNING),
    "write superseded": Case(lambda fleet: fleet.state.write("one", OLDER, [NOTE], LEFT), RUNNING),
    "write with a repeated number": Case(
        lambda fleet: fleet.state.write("one", REPEATED, [NOTE], LEFT), RUNNING
    ),
    "write progress": Case(
        lambda fleet: fleet.state.write("one", NEWEST, [PROGRESS, NOTE, PROGRESS]), RUNNING
    ),
    "write after the end": Case(lambda fleet: fleet.state.write("one", NEWEST, [NOTE]), ENDED),
    "finish stage": Case(lambda fleet: fleet.finish(NEWEST, counts=COUNTS), RUNNING, in_flight()),
    "finish stage and send the next": Case(
        lambda fleet: fleet.finish(NEWEST, following=following("gpu.40gb")), RUNNING, in_flight()
    ),
    "finish stage with a turn": Case(
        lambda fleet: fleet.finish(NEWEST, following=following("cpu"), is_shared=True),
        RUNNING,
        in_flight(),
    ),
    "finish stage and wait": Case(
        lambda fleet: fleet.finish(NEWEST, following=following("gpu.40gb"), is_shared=True),
        RUNNING,
        in_flight(),
        room=0,
    ),
    "finish stage superseded": Case(lambda fleet: fleet.finish(OLDER), RUNNING, in_flight()),
    "finish last stage": Case(
        lambda fleet: fleet.state.finish_stage(
            "one", NEWEST, "publish", STAGE, LEFT, {"files": []}, counts=COUNTS
        ),
        RUNNING,
        in_flight(),
    ),
    "finish last stage cancelled": Case(
        lambda fleet: fleet.state.finish_stage(
            "one", NEWEST, "publish", STAGE, NO_ARTIFACTS, {"f": 1}, cancelled=True
        ),
        RUNNING | {"status": "cancelling"},
        in_flight(),
    ),
    "fail by its own fault": Case(fail(ErrorCode.INVALID_DATASET), RUNNING, in_flight()),
    "fail and be dead": Case(fail(ErrorCode.INTERNAL), RUNNING, in_flight()),
    "fail cancelled": Case(
        fail(ErrorCode.CANCELLED), RUNNING | {"due_at": "5"}, in_flight(**{DUE: {"one": 5.0}})
    ),
    "fail superseded": Case(fail(ErrorCode.INTERNAL, OLDER), RUNNING, in_flight()),
    "release": Case(
        lambda fleet: fleet.state.release("one", NEWEST, NOTE, counts=COUNTS), RUNNING, in_flight()
    ),
    "release later": Case(
        lambda fleet: fleet.state.release("one", NEWEST, NOTE, {"retries": "1"}, delay_s=60),
        RUNNING,
        in_flight(),
    ),
    "release pausing": Case(
        lambda fleet: fleet.state.release("one", NEWEST, NOTE, delay_s=60),
        RUNNING | {"status": "pausing"},
        in_flight(),
    ),
    "release cancelling": Case(
        lambda fleet: fleet.state.release("one", NEWEST, NOTE),
        RUNNING | {"status": "cancelling"},
        in_flight(),
    ),
    "release superseded": Case(
        lambda fleet: fleet.state.release("one", OLDER, NOTE), RUNNING, in_flight()
    ),
    "requested state": Case(lambda fleet: fleet.state.requested_state("one", NEWEST), RUNNING),
    "requested state superseded": Case(
        lambda fleet: fleet.state.requested_state("one", OLDER), RUNNING
    ),
    "requested state after the end": Case(
        lambda fleet: fleet.state.requested_state("one", NEWEST), ENDED
    ),
    "follow": Case(
        lambda fleet: fleet.state.follow("one", "r3"), RUNNING | {"other_result_ids": '["r2"]'}
    ),
    "follow again": Case(
        lambda fleet: fleet.state.follow("one", "r2"), RUNNING | {"other_result_ids": '["r2"]'}
    ),
    "follow as the first": Case(lambda fleet: fleet.state.follow("one", "result"), RUNNING),
    "follow ended": Case(lambda fleet: fleet.state.follow("one", "r2"), ENDED),
    "follow unknown": Case(lambda fleet: fleet.state.follow("one", "r2")),
    "follow as the seventeenth": Case(
        lambda fleet: fleet.state.follow("one", "r17"),
        RUNNING | {"other_result_ids": json.dumps([f"r{n}" for n in range(2, 17)])},
    ),
    "requested state of an unknown job": Case(
        lambda fleet: fleet.state.requested_state("one", NEWEST)
    ),
    # GPU time. The times before are of 1970, so that the seconds are known where the end is.
    "begin on a GPU": Case(lambda fleet: fleet.begin_on_gpu(), BETWEEN, in_flight()),
    "begin on a GPU, lost": Case(
        lambda fleet: fleet.begin_on_gpu(), ON_GPU | {"stage_state": "running"}, in_flight()
    ),
    "requeue lost on a GPU": Case(
        lambda fleet: fleet.control.requeue("one", 3, "cache"), ON_GPU, in_flight()
    ),
    "finish stage without its GPU": Case(
        lambda fleet: fleet.finish(NEWEST, is_gpu_used=False), ON_GPU, in_flight()
    ),
    "requested state after long": Case(
        lambda fleet: fleet.state.requested_state("one", NEWEST), ON_GPU
    ),
    # Quotas.
    "create at the quota": Case(create, before=quotas(gpu_hours=1) | used(gpu_ms=3_600_000)),
    "create below the quota": Case(create, before=quotas(gpu_hours=1) | used(gpu_ms=3_599_999)),
    "create at the quota of others": Case(
        create, before=quotas("*", money=2) | used(cost_micros=2_000_000)
    ),
    "create at another quota": Case(
        create, before=quotas("b", gpu_hours=1) | used(gpu_ms=3_600_000)
    ),
    "create held by its quota": Case(
        create, before=quotas(gpu_hours=1, hold=True) | used(gpu_ms=3_600_000)
    ),
    "create with too many waiting": Case(
        create, before=quotas(max_waiting=1) | in_tenant_queue("gpu.40gb")
    ),
    "create existing at the quota": Case(
        create, QUEUED, quotas(gpu_hours=1) | used(gpu_ms=3_600_000)
    ),
    "dispatch at the quota": Case(
        lambda fleet: fleet.queues.dispatch(),
        IN_TENANT_QUEUE,
        in_tenant_queue() | quotas(gpu_hours=1) | used(gpu_ms=3_600_000),
        room=1,
    ),
    "set quota": Case(
        lambda fleet: Quotas(fleet.redis).change("a", {"money": 2.5, "gpu_hours": None}),
        before=quotas(gpu_hours=1, max_waiting=3),
    ),
    "set quota to none": Case(
        lambda fleet: Quotas(fleet.redis).change("a", {"gpu_hours": None, "hold": False}),
        before=quotas(gpu_hours=1),
    ),
    # Requests of operators.
    "prioritize unknown": Case(lambda fleet: fleet.control.prioritize("one", 5)),
    "prioritize ended": Case(lambda fleet: fleet.control.prioritize("one", 5), ENDED),
    "prioritize waiting": Case(
        lambda fleet: fleet.control.prioritize("one", 5),
        IN_TENANT_QUEUE | {"front_at": "5"},
        in_tenant_queue(),
    ),
    "move to the front": Case(
        lambda fleet: fleet.control.prioritize("one", None), IN_TENANT_QUEUE, in_tenant_queue()
    ),
    "prioritize before its GPU": Case(
        lambda fleet: fleet.control.prioritize("one", 5), RUNNING, in_flight()
    ),
    "prioritize on a GPU": Case(
        lambda fleet: fleet.control.prioritize("one", 5), TRAINING, in_flight()
    ),
    "prioritize dispatched": Case(
        lambda fleet: fleet.control.prioritize("one", 5), BETWEEN, in_flight()
    ),
    "prioritize cached": Case(
        lambda fleet: fleet.control.prioritize("one", 5),
        BETWEEN | {"artifact:cache_queue": '"cpu"'},
        in_flight(),
    ),
    "prioritize paused": Case(
        lambda fleet: fleet.control.prioritize("one", 5), TRAINING | {"status": "paused"}
    ),
    "cancel unknown": Case(lambda fleet: fleet.control.cancel("one")),
    "cancel ended": Case(lambda fleet: fleet.control.cancel("one"), ENDED),
    "cancel waiting": Case(
        lambda fleet: fleet.control.cancel("one"), IN_TENANT_QUEUE, in_tenant_queue()
    ),
    "cancel running": Case(lambda fleet: fleet.control.cancel("one"), RUNNING, in_flight()),
    "cancel and save, waiting": Case(
        lambda fleet: fleet.control.cancel("one", save=True),
        TRAINING | {"stage_state": "queued", "artifact:checkpoints": "k", "due_at": "5"},
        {DUE: {"one": 5.0}},
    ),
    "cancel and save, nothing to save": Case(
        lambda fleet: fleet.control.cancel("one", save=True), QUEUED, in_flight()
    ),
    "cancel and save, running": Case(
        lambda fleet: fleet.control.cancel("one", save=True),
        TRAINING | {"artifact:checkpoints": "k"},
    ),
    "cancel and save, publish waits": Case(
        lambda fleet: fleet.control.cancel("one", save=True),
        TRAINING
        | {
            "stage": "publish",
            "stage_number": "4",
            "stage_state": "queued",
            "artifact:checkpoints": "k",
        },
    ),
    "pause unknown": Case(lambda fleet: fleet.control.pause("one")),
    "pause waiting": Case(
        lambda fleet: fleet.control.pause("one"), IN_TENANT_QUEUE, in_tenant_queue()
    ),
    "pause queued": Case(lambda fleet: fleet.control.pause("one"), BETWEEN, in_flight()),
    "pause running": Case(lambda fleet: fleet.control.pause("one"), RUNNING, in_flight()),
    "pause ended": Case(lambda fleet: fleet.control.pause("one"), ENDED),
    "pause paused": Case(lambda fleet: fleet.control.pause("one"), RUNNING | {"status": "pausing"}),
    "resume unknown": Case(lambda fleet: fleet.control.resume("one")),
    "resume paused": Case(
        lambda fleet: fleet.control.resume("one"), BETWEEN | {"status": "paused"}
    ),
    "resume never begun": Case(
        lambda fleet: fleet.control.resume("one"), QUEUED | {"status": "paused"}
    ),
    "resume pausing": Case(
        lambda fleet: fleet.control.resume("one"), RUNNING | {"status": "pausing"}
    ),
    "resume without room": Case(
        lambda fleet: fleet.control.resume("one"), BETWEEN | {"status": "paused"}, room=0
    ),
    "resume running": Case(lambda fleet: fleet.control.resume("one"), RUNNING),
    "replay failed": Case(
        lambda fleet: fleet.control.replay("one"),
        ENDED | {"stage_state": "running"},
        {DEAD: {"one": 5.0}, WEBHOOKS: {"one": 5.0}},
    ),
    # Maintenance.
    "requeue queued": Case(
        lambda fleet: fleet.control.requeue("one", 0, "prepare"), QUEUED, in_flight()
    ),
    "requeue lost": Case(
        lambda fleet: fleet.control.requeue("one", 3, "prepare"), RUNNING, in_flight()
    ),
    "requeue done": Case(
        lambda fleet: fleet.control.requeue("one", 3, "cache"), BETWEEN, in_flight()
    ),
    "requeue held": Case(
        lambda fleet: fleet.control.requeue("one", 3, "prepare"), RUNNING, in_flight() | held()
    ),
    "requeue an earlier stage": Case(
        lambda fleet: fleet.control.requeue("one", 3, "prepare"), TRAINING, in_flight()
    ),
    "requeue superseded": Case(
        lambda fleet: fleet.control.requeue("one", 2, "prepare"), RUNNING, in_flight()
    ),
    "requeue not in flight": Case(
        lambda fleet: fleet.control.requeue("one", 3, "prepare"), RUNNING
    ),
    "take due": Case(
        lambda fleet: [job.id for job in fleet.control.take_due()],
        QUEUED | {"due_at": "5"},
        {DUE: {"one": 5.0}},
    ),
    "take due ended": Case(
        lambda fleet: [job.id for job in fleet.control.take_due()], ENDED, {DUE: {"one": 5.0}}
    ),
    "take due unknown": Case(
        lambda fleet: [job.id for job in fleet.control.take_due()], None, {DUE: {"one": 5.0}}
    ),
    "take due later": Case(
        lambda fleet: [job.id for job in fleet.control.take_due()], QUEUED, {DUE: {"one": 9e9}}
    ),
    "dispatch": Case(
        lambda fleet: fleet.queues.dispatch(), IN_TENANT_QUEUE, in_tenant_queue(), room=1, limit="1"
    ),
    "dispatch one of two": Case(
        lambda fleet: fleet.queues.dispatch(),
        IN_TENANT_QUEUE,
        in_tenant_queue()
        | {f"{TENANT_QUEUES}:cpu:a": {"one": 9e10 + 1000, "two": 9e10 + 2000}}
        | {f"{SINCE}:cpu:a": {"one": 1000.0, "two": 2000.0}},
        limit="1",
    ),
    "dispatch nothing": Case(lambda fleet: fleet.queues.dispatch()),
    "dispatch without room": Case(
        lambda fleet: fleet.queues.dispatch(), IN_TENANT_QUEUE, in_tenant_queue(), room=0
    ),
    "dispatch at the limit": Case(
        lambda fleet: fleet.queues.dispatch(),
        IN_TENANT_QUEUE,
        in_tenant_queue() | {IN_FLIGHT: {"x": "a"}},
        limit="1",
    ),
    "dispatch a job that is gone": Case(
        lambda fleet: fleet.queues.dispatch(), None, in_tenant_queue()
    ),
    "claim webhook": Case(claim_webhook, ENDED, {WEBHOOKS: {"one": 5.0}}),
    "claim webhook later": Case(claim_webhook, ENDED, {WEBHOOKS: {"one": 2001.0}}),
    "claim webhook delivered": Case(claim_webhook, ENDED),
    # Jobs' own webhooks.
    "create with a webhook": Case(create_with_webhook),
    "begin with a webhook": Case(
        lambda fleet: fleet.begin(), QUEUED | HOOKED | {"attempt": "0"}, in_flight()
    ),
    "progress with a webhook": Case(
        lambda fleet: fleet.state.write("one", NEWEST, [PROGRESS]),
        RUNNING | HOOKED,
        {DELIVERIES: {"1": PENDING_PROGRESS, "sequence": "1", "pending": "1", "progress": "1"}},
    ),
    "newer progress supersedes": Case(
        lambda fleet: fleet.state.write("one", NEWEST, [PROGRESS]),
        RUNNING | HOOKED,
        {
            DELIVERIES: {
                "1": PENDING_PROGRESS.replace('"attempts":0', '"attempts":1'),
                "sequence": "1",
                "pending": "1",
                "progress": "1",
                "progress_at": "5",
            },
            PENDING: {"one 1": 9e9},
        },
    ),
    "progress a moment later": Case(
        lambda fleet: fleet.state.write("one", NEWEST, [PROGRESS]),
        RUNNING | HOOKED,
        {DELIVERIES: {"sequence": "1", "progress": "1", "progress_at": "9000000000"}},
    ),
    "checkpoint with too many pending": Case(
        lambda fleet: fleet.state.write("one", NEWEST, [CHECKPOINT]),
        RUNNING | HOOKED,
        {DELIVERIES: {"sequence": "100", "pending": "100"}},
    ),
    "cancel with a webhook that is gone": Case(
        lambda fleet: fleet.control.cancel("one"), QUEUED | HOOKED, {DELIVERIES: {"gone": "1"}}
    ),
    "cancel with a webhook": Case(lambda fleet: fleet.control.cancel("one"), QUEUED | HOOKED),
    "claim delivery": Case(
        lambda fleet: fleet.deliveries.claim("a", 2000.0, 2060.0) is not None,
        QUEUED | HOOKED,
        {DELIVERIES: {"1": PENDING_PROGRESS}, PENDING: {"one 1": 5.0}, TENANTS: {"a": 5.0}},
    ),
    "claim delivery later": Case(
        lambda fleet: fleet.deliveries.claim("a", 2000.0, 2060.0),
        QUEUED | HOOKED,
        {DELIVERIES: {"1": PENDING_PROGRESS}, PENDING: {"one 1": 2001.0}, TENANTS: {"a": 5.0}},
    ),
    "claim delivery of an expired job": Case(
        lambda fleet: fleet.deliveries.claim("a", 2000.0, 2060.0),
        None,
        {PENDING: {"one 1": 5.0}, TENANTS: {"a": 5.0}},
    ),
    # The audit log.
    "record audit": Case(
        lambda fleet: AuditLog(fleet.redis, HOUR).record(
            "key a", Action.JOB_PAUSE, "one", save=True
        )
    ),
    # Jobs that have ended.
    "record copies": Case(record_copies, ENDED),
    "record copies of a running job": Case(record_copies, RUNNING),
    "record copies of an unknown job": Case(record_copies),
    "restore a job": Case(restore),
    "restore a known job": Case(restore, ENDED),
    "restore a deleted job": Case(restore, TOMBSTONE),
    "edit": Case(lambda fleet: fleet.control.edit("one", title="t", labels={}), RUNNING),
    "edit an unknown job": Case(lambda fleet: fleet.control.edit("one", notes="n")),
    "edit a deleted job": Case(lambda fleet: fleet.control.edit("one", notes="n"), TOMBSTONE),
    "hold results": Case(hold_results, ENDED),
    "hold results of a running job": Case(hold_results, RUNNING),
    "hold results of a deleted job": Case(hold_results, TOMBSTONE),
    # Deleting jobs.
    "delete": Case(
        delete,
        ENDED | HOOKED,
        RENEWALS
        | {JOBS: {"one": 1.0, "two": 2.0}, f"{TENANT_JOBS}a": {"one": 1.0}, DEAD: {"one": 5.0}}
        | {WEBHOOKS: {"one": 5.0}, f"{WEBHOOKS}:deliveries": {"one": "1"}}
        | {DELIVERIES: {"sequence": "2", "2": PENDING_PROGRESS}}
        | {PENDING: {"one 2": 5.0, "two 1": 6.0}, TENANTS: {"a": 5.0}},
    ),
    "delete running": Case(delete, RUNNING, in_flight()),
    "delete unknown": Case(delete),
    "delete deleted": Case(delete, TOMBSTONE),
    "delete copied": Case(delete, ENDED | {"copied_until": "9000000000"}),
    "delete copied before": Case(delete, ENDED | {"copied_until": "5"}),
    "delete replayed": Case(delete, ENDED | {"attempt": "4"}),
    "create deleted": Case(create, TOMBSTONE),
    "begin deleted": Case(lambda fleet: fleet.begin(), TOMBSTONE),
    "write deleted": Case(lambda fleet: fleet.state.write("one", NEWEST, [NOTE]), TOMBSTONE),
    "cancel deleted": Case(lambda fleet: fleet.control.cancel("one"), TOMBSTONE),
    "renew deleted": Case(renew, TOMBSTONE, RENEWALS),
    # Renewing keys.
    "renew waiting": Case(renew, IN_TENANT_QUEUE, in_tenant_queue() | RENEWALS),
    "renew running": Case(renew, RUNNING, in_flight() | RENEWALS),
    "renew ended": Case(renew, ENDED, RENEWALS),
    "renew expired": Case(
        renew, None, in_flight() | RENEWALS | {JOBS: {"one": 1.0}, f"{TENANT_JOBS}a": {"one": 1.0}}
    ),
    "renew later": Case(renew, RUNNING, {"training:jobs:renewals": {"one a": 9e9}}),
    # Messages and the cache.
    "restore a lost message": Case(redeliver, None, UNACKED | held()),
    "restore nothing": Case(redeliver, None, UNACKED | {"unacked_index": {"tag": 9e9}}),
    "restore an empty entry": Case(redeliver, None, held()),
    "claim entries": Case(
        lambda fleet: fleet.cache.claim(["a", "b", "c", "d", "e", "f"], "one 2", 3),
        None,
        {ENTRIES: {"a": "pack"}, f"{CLAIM}b": "one 1", f"{CLAIM}c": "one 3", f"{CLAIM}d": "on 1"},
    ),
    "renew claims": Case(
        lambda fleet: fleet.cache.renew(["a", "b"], "one 2"),
        None,
        {f"{CLAIM}a": "one 2", f"{CLAIM}b": "one 3"},
    ),
    "release claims": Case(
        lambda fleet: fleet.cache.release(["a", "b"], "one 2"),
        None,
        {f"{CLAIM}a": "one 2", f"{CLAIM}b": "one 3"},
    ),
    "forget packs": Case(
        lambda fleet: fleet.cache.remove(["one"]), None, {ENTRIES: {"a": "one", "b": "two"}}
    ),
}


@pytest.fixture
def fleet(redis_client: Redis, job_document: dict[str, Any]) -> Fleet:
    return Fleet(redis_client, parse_job(job_document | {"tenant": "a", "id": "one"}))


@pytest.mark.parametrize("name", CASES)
def test_script_replies_and_changes_as_recorded(
    name: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[object] = []

    def recorded(call: Callable[..., object]) -> Callable[..., object]:
        def recording(*args: Any) -> object:
            reply = call(*args)
            replies.append(reply)
            return reply

        return recording

    case = CASES[name]
    prepare(fleet, case)
    before = dump(fleet.redis)
    for name_of_call in ("evalsha", "eval"):  # EVAL, where the broker does not have the script
        call = getattr(fleet.redis, name_of_call)
        monkeypatch.setattr(fleet.redis, name_of_call, recorded(call))
    try:
        result = str(plain(case.call(fleet)))
    except JobError as error:
        result = type(error).__name__
    after = dump(fleet.redis)
    found = {"result": result, "replies": plain(replies), "changes": changes(before, after)}
    if os.environ.get("RECORD_CALLS"):
        known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        RECORDED.write_text(json.dumps(known | {name: found}, indent=1, sort_keys=True) + "\n")
    assert json.loads(json.dumps(found)) == json.loads(RECORDED.read_text())[name]


def test_each_recorded_call_is_a_case() -> None:
    assert json.loads(RECORDED.read_text()).keys() == CASES.keys()


def prepare(fleet: Fleet, case: Case) -> None:
    """Write the state before the call."""
    client = fleet.redis
    if case.room is not None:
        client.hset(FLEET, mapping={f"room:{queue}": case.room for queue in ALL_QUEUES})
    if case.limit is not None:
        client.hset(FLEET, mapping={"weight:a": "1.0", "limit:a": case.limit})
    if case.job is not None:
        fields = {**case.job, "job": fleet.job.model_dump_json()}
        client.hset("training:job:one", mapping=cast("dict[Any, Any]", fields))
    for key, value in case.before.items():
        if isinstance(value, set):
            client.sadd(key, *value)
        elif isinstance(value, str):
            client.set(key, value, px=1000)
        elif all(isinstance(it, float) for it in value.values()):
            client.zadd(key, value)
        else:
            client.hset(key, mapping=value)


def dump(client: Any) -> dict[str, Any]:
    """Return everything in the broker, with times relative to now."""
    read: dict[str, Callable[[str], Any]] = {
        "hash": client.hgetall,
        "zset": lambda key: dict(client.zrange(key, 0, -1, withscores=True)),
        "set": lambda key: sorted(client.smembers(key)),
        "string": client.get,
        "list": lambda key: client.lrange(key, 0, -1),
        "stream": lambda key: [fields for _, fields in client.xrange(key)],
    }
    found: dict[str, Any] = {}
    for key in map(str, client.scan_iter()):
        # Of months, this one alone occurs.
        name = re.sub(r"^training:usage:\d{4}-\d\d", "training:usage:MONTH", key)
        found[name] = plain(read[str(client.type(key))](key))
        found[f"{name} ttl"] = round(int(client.ttl(key)), -2)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the differences by key, and by field for hashes and sorted sets."""
    found: dict[str, Any] = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = sorted(old.keys() | new.keys())
            new = {name: new.get(name) for name in names if old.get(name) != new.get(name)}
        found[key] = new
    return found


def plain_json(value: Any) -> Any:
    """Return JSON as ``plain`` does; a message by its task, and the fields of a hash by name."""
    if isinstance(value, dict) and "task" in value.get("headers", ()):
        return f"the message of {value['headers']['task']}"
    is_hash = isinstance(value, list) and len(value) > 20
    return plain(dict(zip(value[::2], value[1::2], strict=True)) if is_hash else value)


def plain_time(value: float | str) -> float | str:
    """Return a time near now, or an order made of one, relative to it."""
    distance = float(value) - time.time()
    if abs(distance) < 5000:
        return f"now+{round(distance, -1):g}".replace("+-0", "").replace("+0", "")
    if 8e10 < float(value) < 1e11 and abs(float(value) - 9e10 - time.time()) < 1000:
        return "9e10+now"
    return "-now" if abs(float(value) + time.time()) < 1000 else value


def plain(value: Any) -> Any:
    """Return the value with JSON parsed, times relative to now, random ids and estimates elided."""
    if isinstance(value, Mapping):
        return {
            str(key): "..." if key in ("job", "estimate") else plain(it)
            for key, it in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(it) for it in value]
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value):
        return "..."
    if isinstance(value, str) and re.fullmatch(r"\d{13}-\d+", value):
        return "position"
    if isinstance(value, str) and value[:1] in "{[" and value[1:]:
        return plain_json(json.loads(value))
    if isinstance(value, float) or (isinstance(value, str) and re.fullmatch(r"\d+\.\d+", value)):
        value = plain_time(value)
    if type(value) is str:  # no enumeration's value
        value = re.sub(r"(?<= )\d{10}\.\d{6}$", "now", value)
        return re.sub(r"[\d.]+ GiB", "... GiB", value)
    return value
