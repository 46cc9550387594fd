from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from redis import Redis

from routing.fair_share import TenantShare
from routing.queues import ALL_QUEUES
from tasks.contract import record_key
from tasks.events import Note
from tasks.stages.messages import read_message
from tasks.stages.submit import submit
from tasks.state.artifacts import NO_ARTIFACTS
from tasks.state.control import JobControl
from tasks.state.fencing_token import FencingToken
from tasks.state.fleet_snapshot import read_fleet
from tasks.state.job_store import DispatchOutcome, JobStore, StartOutcome
from tasks.state.keys import tenant_queue_key
from tasks.state.record import JobStatus, StageRecord
from tasks.state.stage_message import stage_message
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import WorkerInfo

HOUR = timedelta(hours=1)
NOTE = Note(level="info", message="it stops")


@pytest.fixture
def queues(redis_client: Redis) -> TenantQueues:
    """The tenant queues in front of queues with room for one message each."""
    queues = TenantQueues(redis_client, HOUR)
    queues.publish_fleet([WorkerInfo(queues=ALL_QUEUES, memory_class=None)], {}, HOUR)
    return queues


@pytest.fixture
def jobs(redis_client: Redis, queues: TenantQueues) -> JobStore:
    return JobStore(redis_client, HOUR)


@pytest.fixture
def control(redis_client: Redis) -> JobControl:
    return JobControl(redis_client, HOUR)


@pytest.fixture
def submit_for(jobs: JobStore, job_document: dict[str, Any]) -> Callable[..., str]:
    def one(tenant: str = "a", priority: int = 0) -> str:
        document = {**job_document, "tenant": tenant, "priority": priority}
        return submit(document, jobs, "result").job_id

    return one


def fill(client: Redis, queue: str = "cpu") -> None:
    """Add a message that no worker has taken yet."""
    client.rpush(queue, "a message")


def sent_jobs(client: Redis, queue: str = "cpu") -> list[str | None]:
    """Take the messages out of a queue and return the jobs that they are about."""
    texts = cast("list[str]", client.lpop(queue, 100) or [])
    return [read_message(text, queue).job_id for text in texts]


def begin(jobs: JobStore, job_id: str, stage: str = "prepare") -> FencingToken:
    start = jobs.begin(job_id, stage, worker="w", queue="cpu", tag="t")
    assert start.outcome == StartOutcome.BEGUN
    return start.token


def finish(jobs: JobStore, job_id: str, stage: str, following: str, is_shared: bool) -> None:
    token = begin(jobs, job_id, stage)
    record = StageRecord(queue="cpu", worker="w", attempt=token.attempt, started_at=0, seconds=1.5)
    message = stage_message(job_id, "result", following, "gpu.40gb", label="job=j")
    jobs.finish_stage(
        job_id,
        token,
        stage,
        record,
        NO_ARTIFACTS,
        None,
        following=message,
        is_shared=is_shared,
    )


def test_a_job_is_sent_at_once_if_there_is_room(
    jobs: JobStore, job_document: dict[str, Any], redis_client: Redis, queues: TenantQueues
) -> None:
    first = submit(job_document, jobs, "result")
    assert first.outcome == DispatchOutcome.SENT
    assert queues.in_flight() == {"default": 1}
    assert sent_jobs(redis_client) == [first.job_id]
    fill(redis_client)
    assert submit(job_document, jobs, "result").outcome == DispatchOutcome.WAITING
    assert queues.waiting() == {"cpu": {"default": 1}}


def test_a_waiting_job_is_sent_once_when_there_is_room(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues, jobs: JobStore
) -> None:
    fill(redis_client)
    job_id = submit_for()
    assert queues.dispatch() == []
    redis_client.delete("cpu")
    assert queues.dispatch() == [job_id]
    assert queues.dispatch() == []
    assert sent_jobs(redis_client) == [job_id]
    assert queues.dispatch() == []
    assert not jobs.get(job_id).in_tenant_queue
    assert queues.waiting() == {}
    assert queues.in_flight() == {"a": 1}


def test_tenants_alternate_however_many_jobs_one_has(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues
) -> None:
    fill(redis_client)
    tenants = {submit_for(tenant): tenant for tenant in "aaaaabb"}
    sent: list[str] = []
    while queues.waiting():
        redis_client.delete("cpu")
        [job_id] = queues.dispatch()
        sent.append(tenants[job_id])
    assert sent == ["a", "b", "a", "b", "a", "a", "a"]


def test_within_a_tenant_priority_precedes_age(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues, jobs: JobStore
) -> None:
    fill(redis_client)
    old, young, urgent = submit_for(), submit_for(), submit_for(priority=9)
    assert redis_client.zrange(tenant_queue_key("cpu", "a"), 0, -1) == [urgent, old, young]
    for job_id in (urgent, old, young):
        redis_client.delete("cpu")
        assert queues.dispatch() == [job_id]


def test_a_limit_holds_only_for_its_tenant(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues, jobs: JobStore
) -> None:
    worker = WorkerInfo(queues=ALL_QUEUES, memory_class=None)
    queues.publish_fleet([worker], {"a": TenantShare(limit=1), "free": TenantShare(2)}, HOUR)
    assert queues.shares() == {"a": TenantShare(limit=1), "free": TenantShare(2)}
    first, second = submit_for("a"), submit_for("a")
    other = submit_for("b")
    assert queues.waiting() == {"cpu": {"a": 1, "b": 1}}
    redis_client.delete("cpu")
    assert queues.dispatch() == [other]
    redis_client.delete("cpu")
    token = begin(jobs, first)
    jobs.release(first, token, NOTE, delay_s=60)  # it waits for a retry
    assert queues.dispatch() == [second]


def test_a_prepared_job_waits_for_its_share_of_the_gpu(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues, jobs: JobStore
) -> None:
    fill(redis_client, "gpu.40gb")
    job_id = submit_for()
    finish(jobs, job_id, "prepare", "cache", is_shared=True)
    record = jobs.get(job_id)
    assert (record.stage, record.pending_queue, record.in_tenant_queue) == (
        "cache",
        "gpu.40gb",
        True,
    )
    assert queues.in_flight() == {}
    redis_client.delete("gpu.40gb")
    assert queues.dispatch() == [job_id]
    # A dispatch is for all stages that follow.
    finish(jobs, job_id, "cache", "train", is_shared=False)
    assert sent_jobs(redis_client, "gpu.40gb") == [job_id, job_id]


@pytest.mark.parametrize("change", ["cancel", "pause", "begin"])
def test_a_job_leaves_its_tenant_queue_on_every_change(
    change: str,
    submit_for: Callable[..., str],
    redis_client: Redis,
    queues: TenantQueues,
    jobs: JobStore,
    control: JobControl,
) -> None:
    fill(redis_client)
    job_id = submit_for()
    if change == "begin":
        begin(jobs, job_id)  # by a message that its backend sent itself
    else:
        getattr(control, change)(job_id)
    assert queues.waiting() == {}
    assert queues.in_flight() == ({"a": 1} if change == "begin" else {})
    redis_client.delete("cpu")
    assert queues.dispatch() == []


def test_a_resumed_job_waits_in_its_tenant_queue_again(
    submit_for: Callable[..., str],
    redis_client: Redis,
    queues: TenantQueues,
    jobs: JobStore,
    control: JobControl,
) -> None:
    job_id = submit_for()
    control.pause(job_id)
    assert not control.resume(job_id)  # its first message is still in the queue
    assert jobs.get(job_id).status == JobStatus.QUEUED
    redis_client.delete("cpu")
    assert queues.dispatch() == [job_id]


def test_without_a_live_worker_jobs_wait(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues
) -> None:
    queues.publish_fleet([], {}, HOUR)
    job_id = submit_for()
    assert queues.dispatch() == []
    queues.publish_fleet([WorkerInfo(queues=("cpu",), memory_class=None)], {}, HOUR)
    assert queues.dispatch() == [job_id]


def test_an_expired_job_delays_no_other(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues
) -> None:
    fill(redis_client)
    expired, other = submit_for(), submit_for()
    redis_client.delete("cpu", f"training:job:{expired}")
    assert queues.dispatch() == [other]
    assert queues.waiting() == {}


def test_a_job_that_an_older_version_let_wait_is_sent(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues
) -> None:
    fill(redis_client)
    job_id = submit_for()
    redis_client.delete("cpu")
    redis_client.hdel(record_key(job_id), "waiting_message")
    assert queues.dispatch() == [job_id]
    assert sent_jobs(redis_client) == [job_id]


def test_every_key_expires(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues
) -> None:
    submit_for()
    fill(redis_client)
    submit_for()
    keys = list(map(str, redis_client.scan_iter("training:*")))
    assert {
        "training:tenant_queues",
        "training:tenant_queues:cpu",
        "training:tenant_queues:cpu:a",
    } < set(keys)
    assert [key for key in keys if redis_client.ttl(key) == -1] == []


def test_dispatch_costs_one_call_if_no_queue_has_room(
    submit_for: Callable[..., str], redis_client: Redis, queues: TenantQueues
) -> None:
    fill(redis_client)
    for tenant in "abc":
        submit_for(tenant)
    queues.dispatch()  # from now on the server has the script
    redis_client.config_resetstat()
    queues.dispatch()
    stats = redis_client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert not stats.keys() & {"cmdstat_zrange", "cmdstat_hvals", "cmdstat_hgetall"}


@pytest.mark.parametrize("broken", ["queue", "record"])
def test_what_cannot_be_read_delays_no_other_tenant(
    queues: TenantQueues, submit_for: Callable[..., str], redis_client: Redis, broken: str
) -> None:
    fill(redis_client)
    first, other = submit_for("a"), submit_for("b")
    key = tenant_queue_key("cpu", "a") if broken == "queue" else record_key(first)
    redis_client.set(key, "of another type", ex=60)
    assert sum(queues.waiting()["cpu"].values()) == (1 if broken == "queue" else 2)
    assert queues.oldest_waits_s().keys() == {"cpu"}
    snapshot = read_fleet(redis_client)
    assert snapshot.waiting["cpu", "b"] == 1
    redis_client.delete("cpu")
    assert queues.dispatch() == [other]
