from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from redis import ConnectionError as Away
from redis import Redis

from routing.fair_share import TenantShare
from routing.queues import ALL_QUEUES
from tasks.contract import record_key
from tasks.events import Note
from tasks.stages.submit import submit
from tasks.state.artifacts import NO_ARTIFACTS
from tasks.state.control import JobControl
from tasks.state.job_store import DispatchOutcome, JobStore, StartOutcome
from tasks.state.record import JobStatus, JobSummary, StageRecord
from tasks.state.tenant_queues import TenantQueues
from tasks.state.workers import WorkerInfo

HOUR = timedelta(hours=1)
NOTE = Note(level="info", message="it stops")


@pytest.fixture
def sent() -> list[JobSummary]:
    return []


@pytest.fixture
def lanes(redis_client: Redis, sent: list[JobSummary]) -> TenantQueues:
    """Before a queue that one worker serves: it has room for one message."""
    it = TenantQueues(redis_client, HOUR, sent.append)
    it.publish_fleet([WorkerInfo(queues=ALL_QUEUES, memory_class=None)], {}, HOUR)
    return it


@pytest.fixture
def jobs(redis_client: Redis, lanes: TenantQueues) -> JobStore:
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
    """A message that no worker has taken yet."""
    client.rpush(queue, "a message")


def begin(jobs: JobStore, job_id: str, stage: str = "prepare") -> int:
    outcome, attempt, _ = jobs.begin(job_id, stage, worker="w", queue="cpu", tag="t")
    assert outcome == StartOutcome.BEGUN
    return attempt


def finish(jobs: JobStore, job_id: str, stage: str, fair_share_queue: str | None) -> None:
    attempt = begin(jobs, job_id, stage)
    record = StageRecord(queue="cpu", worker="w", attempt=attempt, started_at=0, seconds=1.5)
    queue = fair_share_queue
    jobs.finish_stage(job_id, attempt, stage, record, NO_ARTIFACTS, None, fair_share_queue=queue)


def test_a_job_goes_at_once_where_there_is_room_and_nobody_waits(
    jobs: JobStore, job_document: dict[str, Any], redis_client: Redis, lanes: TenantQueues
) -> None:
    assert submit(job_document, jobs, "result").outcome == DispatchOutcome.SENT
    assert lanes.in_flight() == {"default": 1}
    fill(redis_client)
    assert submit(job_document, jobs, "result").outcome == DispatchOutcome.WAITING
    assert lanes.waiting() == {"cpu": {"default": 1}}


def test_a_job_that_waits_goes_when_there_is_room_and_once(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues, sent: list[JobSummary]
) -> None:
    fill(redis_client)
    job_id = submit_for()
    assert lanes.dispatch() == []
    redis_client.delete("cpu")
    assert lanes.dispatch() == [job_id]
    assert lanes.dispatch() == []
    assert [(record.id, record.pending_queue, record.in_tenant_queue) for record in sent] == [
        (job_id, "cpu", False)
    ]
    assert lanes.waiting() == {}
    assert lanes.in_flight() == {"a": 1}


def test_tenants_take_turns_however_many_jobs_one_of_them_has(
    submit_for: Callable[..., str], redis_client: Redis
) -> None:
    gone: list[str] = []

    def send(head: JobSummary) -> None:
        gone.append(str(redis_client.hget(record_key(head.id), "tenant")))
        fill(redis_client)

    lanes = TenantQueues(redis_client, HOUR, send)
    fill(redis_client)
    for tenant in "aaaaabb":
        submit_for(tenant)
    while lanes.waiting():
        redis_client.delete("cpu")
        assert len(lanes.dispatch()) == 1
    assert gone == ["a", "b", "a", "b", "a", "a", "a"]


def test_within_a_tenant_priority_goes_first_and_then_age(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues, jobs: JobStore
) -> None:
    fill(redis_client)
    old, young, urgent = submit_for(), submit_for(), submit_for(priority=9)
    assert [lanes.jobs_before(jobs.get(it)) for it in (urgent, old, young)] == [0, 1, 2]
    redis_client.delete("cpu")
    assert lanes.dispatch() == [urgent, old, young]


def test_a_limit_holds_for_the_tenant_and_for_nobody_else(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues, jobs: JobStore
) -> None:
    worker = WorkerInfo(queues=ALL_QUEUES, memory_class=None)
    lanes.publish_fleet([worker], {"a": TenantShare(limit=1), "free": TenantShare(2)}, HOUR)
    assert lanes.shares() == {"a": TenantShare(limit=1), "free": TenantShare(2)}
    first, second = submit_for("a"), submit_for("a")
    other = submit_for("b")
    assert lanes.waiting() == {"cpu": {"a": 1, "b": 1}}
    assert lanes.dispatch() == [other]
    attempt = begin(jobs, first)
    jobs.release(first, attempt, NOTE, delay_s=60)  # it waits out a fault
    assert lanes.dispatch() == [second]


def test_a_prepared_job_waits_for_its_turn_on_the_gpu(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues, jobs: JobStore
) -> None:
    fill(redis_client, "gpu.40gb")
    job_id = submit_for()
    finish(jobs, job_id, "prepare", "gpu.40gb")
    assert jobs.next_queue(job_id) is None
    record = jobs.get(job_id)
    assert (record.stage, record.pending_queue, record.in_tenant_queue) == (
        "cache",
        "gpu.40gb",
        True,
    )
    assert lanes.in_flight() == {}
    redis_client.delete("gpu.40gb")
    assert lanes.dispatch() == [job_id]
    # The turn is for all that follows.
    finish(jobs, job_id, "cache", None)
    assert jobs.next_queue(job_id) == "gpu.40gb"


@pytest.mark.parametrize("how", ["cancel", "pause", "begin"])
def test_a_job_leaves_its_lane_however_it_goes_on(
    how: str,
    submit_for: Callable[..., str],
    redis_client: Redis,
    lanes: TenantQueues,
    jobs: JobStore,
    control: JobControl,
) -> None:
    fill(redis_client)
    job_id = submit_for()
    if how == "begin":
        begin(jobs, job_id)  # by a chain that its backend built and sent itself
    else:
        getattr(control, how)(job_id)
    assert lanes.waiting() == {}
    assert lanes.in_flight() == ({"a": 1} if how == "begin" else {})
    redis_client.delete("cpu")
    assert lanes.dispatch() == []


def test_a_job_that_is_resumed_or_replayed_waits_for_its_turn_again(
    submit_for: Callable[..., str],
    redis_client: Redis,
    lanes: TenantQueues,
    jobs: JobStore,
    control: JobControl,
) -> None:
    job_id = submit_for()
    control.pause(job_id)
    fill(redis_client)
    assert not control.resume(job_id)
    assert jobs.get(job_id).status == JobStatus.QUEUED
    redis_client.delete("cpu")
    assert lanes.dispatch() == [job_id]


def test_without_a_live_worker_jobs_wait(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues
) -> None:
    lanes.publish_fleet([], {}, HOUR)
    job_id = submit_for()
    assert lanes.dispatch() == []
    lanes.publish_fleet([WorkerInfo(queues=("cpu",), memory_class=None)], {}, HOUR)
    assert lanes.dispatch() == [job_id]


def test_a_job_whose_life_time_is_over_holds_nobody_up(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues
) -> None:
    fill(redis_client)
    lost, there = submit_for(), submit_for()
    redis_client.delete("cpu", f"training:job:{lost}")
    assert lanes.dispatch() == [there]
    assert lanes.waiting() == {}


def test_what_cannot_be_sent_is_left_to_the_reconciler(
    submit_for: Callable[..., str], redis_client: Redis, control: JobControl, lanes: TenantQueues
) -> None:
    def away(_: JobSummary) -> None:
        raise Away("the broker is away")

    fill(redis_client)
    job_id = submit_for()
    redis_client.delete("cpu")
    assert TenantQueues(redis_client, HOUR, away).dispatch() == []
    assert [record.id for record in control.in_flight()] == [job_id]


def test_every_key_has_a_life_time(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues
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


def test_where_no_queue_has_room_it_takes_one_question_to_know(
    submit_for: Callable[..., str], redis_client: Redis, lanes: TenantQueues
) -> None:
    fill(redis_client)
    for tenant in "abc":
        submit_for(tenant)
    lanes.dispatch()  # the server knows the script from here on
    redis_client.config_resetstat()
    lanes.dispatch()
    asked = redis_client.info("commandstats")
    assert asked["cmdstat_evalsha"]["calls"] == 1
    assert not asked.keys() & {"cmdstat_zrange", "cmdstat_hvals", "cmdstat_hgetall"}
