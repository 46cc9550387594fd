"""GPU time of jobs, usage of tenants, and their quotas."""

import threading
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import pytest
from pydantic import ValidationError
from redis import Redis

from routing.classes import GpuPrices, MemoryClass
from routing.queues import ALL_QUEUES
from tasks.contract import record_key
from tasks.errors import ErrorCode, JobError, QuotaExceededError
from tasks.events import Note
from tasks.stages.submit import submit
from tasks.state.artifacts import NO_ARTIFACTS
from tasks.state.fencing_token import FencingToken
from tasks.state.fleet_snapshot import read_fleet
from tasks.state.job_store import JobStore
from tasks.state.record import StageRecord
from tasks.state.tenants.quotas import Quota, Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.tenants.usage import UsageStore, month_name, next_month
from tasks.state.workers import WorkerInfo

TESTED = files("tasks.state") / "lua"
HOUR = timedelta(hours=1)
GPU = "gpu.40gb"
NOTE = Note(level="info", message="it stops")
DONE = StageRecord(queue="cpu", worker="w", attempt=1, started_at=0, seconds=1)


@pytest.fixture
def jobs(redis_client: Redis) -> JobStore:
    queues = TenantQueues(redis_client, HOUR)
    queues.publish_fleet([WorkerInfo(queues=ALL_QUEUES, memory_class=None)], {}, HOUR)
    return JobStore(redis_client, HOUR, prices=GpuPrices({MemoryClass.GB40: 3.6}, "EUR"))


@pytest.fixture
def job_id(jobs: JobStore, job_document: dict[str, Any]) -> str:
    """A job whose first stage is done."""
    job_id = submit({**job_document, "tenant": "acme"}, jobs, "result").job_id
    token = jobs.begin(job_id, "prepare", worker="w", queue="cpu", tag="p").token
    jobs.finish_stage(job_id, token, "prepare", DONE, NO_ARTIFACTS, None)
    return job_id


def begun_ago(jobs: JobStore, client: Redis, job_id: str, seconds: float, tag: str) -> FencingToken:
    """Begin ``cache`` on a GPU, as if it had been then, with the last sign of life a minute ago."""
    client.zadd("unacked_index", {tag: 1.0})
    token = jobs.begin(job_id, "cache", worker="w", queue=GPU, tag=tag).token
    *start, began_at = str(client.hget(record_key(job_id), "gpu_start")).split(" ")
    fields = {
        "gpu_start": " ".join([*start, f"{float(began_at) - seconds:.6f}"]),
        "alive_at": f"{float(began_at) - 60:.6f}",
    }
    for name, value in fields.items():
        client.hset(record_key(job_id), name, value)
    return token


def test_every_start_on_a_gpu_counts(jobs: JobStore, redis_client: Redis, job_id: str) -> None:
    assert jobs.get(job_id).gpu_use.seconds == {}
    assert jobs.get(job_id).gpu_use.cost == 0
    released = begun_ago(jobs, redis_client, job_id, 100, "t1")
    jobs.release(job_id, released, NOTE)
    # The worker of this one dies; only its last sign of life is known.
    begun_ago(jobs, redis_client, job_id, 1060, "t2")
    redis_client.zrem("unacked_index", "t2")
    failed = begun_ago(jobs, redis_client, job_id, 500, "t3")
    jobs.fail(job_id, failed, JobError("broken", ErrorCode.TRAINER_FAILED))
    use = jobs.get(job_id).gpu_use
    assert use.seconds["40gb"] == pytest.approx(100 + 1000 + 500, abs=2)
    assert use.cost == pytest.approx(use.seconds["40gb"] / 1000, abs=1e-4)
    assert use.currency == "EUR"
    usage = UsageStore(redis_client)
    [acme] = usage.all(usage.this_month())
    assert acme.tenant == "acme"
    assert acme.gpu_seconds == use.seconds
    assert (acme.cost, acme.currency) == (use.cost, "EUR")
    assert (acme.submitted, acme.succeeded, acme.failed) == (1, 0, 1)


def test_a_repeated_change_counts_once(jobs: JobStore, redis_client: Redis, job_id: str) -> None:
    token = begun_ago(jobs, redis_client, job_id, 100, "t1")
    for _ in range(2):
        jobs.release(job_id, token, NOTE, change_id="one")
    assert jobs.get(job_id).gpu_use.seconds["40gb"] == pytest.approx(100, abs=2)


def test_a_gpu_that_was_not_used_costs_nothing(
    jobs: JobStore, redis_client: Redis, job_id: str
) -> None:
    token = begun_ago(jobs, redis_client, job_id, 100, "t1")
    jobs.finish_stage(job_id, token, "cache", DONE, NO_ARTIFACTS, None, is_gpu_used=False)
    assert jobs.get(job_id).gpu_use.seconds == {}


def test_a_gpu_without_a_price_has_an_unknown_cost(redis_client: Redis, job_id: str) -> None:
    unpriced = JobStore(redis_client, HOUR)
    token = begun_ago(unpriced, redis_client, job_id, 100, "t1")
    unpriced.release(job_id, token, NOTE)
    assert unpriced.get(job_id).gpu_use.cost is None
    usage = UsageStore(redis_client)
    assert usage.of("acme", usage.this_month()).unpriced_gpu_seconds == pytest.approx(100, abs=2)


def test_a_running_start_signs_its_life(jobs: JobStore, redis_client: Redis, job_id: str) -> None:
    token = begun_ago(jobs, redis_client, job_id, 500, "t1")
    before = float(str(redis_client.hget(record_key(job_id), "alive_at")))
    jobs.requested_state(job_id, token)
    assert float(str(redis_client.hget(record_key(job_id), "alive_at"))) > before + 50


def test_many_submitters_do_not_exceed_a_quota(
    jobs: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    redis_client.rpush("cpu", "a message")  # the queue is full: every job waits
    Quotas(redis_client).change("*", {"max_waiting": 5})
    refused: list[QuotaExceededError] = []

    def submit_some(name: str) -> None:
        for number in range(4):
            try:
                submit({**job_document, "id": f"{name}{number}"}, jobs, "result")
            except QuotaExceededError as error:
                refused.append(error)

    threads = [threading.Thread(target=submit_some, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert TenantQueues(redis_client, HOUR).waiting() == {"cpu": {"default": 5}}
    assert len(refused) == 11
    assert refused[0].code == ErrorCode.QUOTA_EXCEEDED
    assert refused[0].retryable


def test_a_used_up_quota_refuses_or_holds(
    jobs: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    quotas, queues = Quotas(redis_client), TenantQueues(redis_client, HOUR)
    quotas.change("acme", {"gpu_hours": 2})
    used = f"training:usage:{UsageStore(redis_client).this_month()}:acme"
    redis_client.hset(used, items=["gpu_ms", 7_200_000, "gpu_ms:40gb", 7_200_000])
    acme = {**job_document, "tenant": "acme"}
    with pytest.raises(QuotaExceededError, match="acme has used its 2 GPU hours of") as caught:
        submit(acme, jobs, "result")
    assert 0 < caught.value.retry_after_s <= 31 * 86400
    quotas.change("acme", {"hold": True})
    held = submit(acme, jobs, "result").job_id
    other = submit({**job_document, "tenant": "zoo"}, jobs, "result").job_id
    redis_client.delete("cpu")
    assert queues.dispatch() == [other]
    redis_client.delete("cpu")
    assert queues.dispatch() == []
    quotas.change("acme", {"gpu_hours": 3})
    assert queues.dispatch() == [held]


def test_quotas_are_changed_one_by_one(redis_client: Redis) -> None:
    quotas = Quotas(redis_client)
    assert quotas.of("acme") == Quota()
    quotas.change("*", {"money": 10.5})
    quotas.change("acme", {"gpu_hours": 1.5, "max_waiting": 7})
    assert quotas.change("acme", {"gpu_hours": None, "hold": True}) == Quota(
        max_waiting=7, hold=True
    )
    assert quotas.of("zoo") == Quota(money=10.5)
    assert quotas.all().keys() == {"*", "acme"}
    assert quotas.remove("acme")
    assert quotas.of("acme") == Quota(money=10.5)
    assert redis_client.ttl("training:quotas") > 399 * 86400


def test_months_follow_each_other() -> None:
    assert next_month("2026-11") == datetime(2026, 12, 1, tzinfo=UTC)
    assert next_month("2026-12") == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_name("2026-02") == "February 2026"


@pytest.mark.parametrize(
    "day", ["1970-01-01", "1999-12-31", "2000-02-29", "2026-03-01", "2028-02-29", "2100-03-01"]
)
def test_scripts_know_the_month_of_a_day(redis_client: Redis, day: str) -> None:
    code = (TESTED / "usage.lua").read_text("utf-8").partition("local function usage_key")[0]
    seconds = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
    for second in (seconds, seconds + 86399):
        script = f"local time = {{'{second}', '0'}}\n{code}\nreturn this_month()"
        assert redis_client.eval(script, 0) == day[:7]


@pytest.mark.parametrize("broken", ["counter", "hash", "quota", "quotas"])
def test_what_cannot_be_read_stops_no_job(
    jobs: JobStore, redis_client: Redis, job_id: str, job_document: dict[str, Any], broken: str
) -> None:
    usage, quotas = UsageStore(redis_client), Quotas(redis_client)
    used = f"training:usage:{usage.this_month()}:acme"
    quotas.change("acme", {"gpu_hours": 1, "max_waiting": 9})
    if broken == "counter":
        redis_client.hset(used, items=["gpu_ms", "many", "gpu_ms:40gb", "many", "failed", "x"])
    elif broken == "hash":
        redis_client.set(used, "no hash", ex=60)
    elif broken == "quota":
        redis_client.hset("training:quotas", "acme", '{"gpu_hours": "no", "new": 1}')
        redis_client.hset("training:quotas", "zoo", "no JSON")
    else:
        redis_client.set("training:quotas", "no hash", ex=60)
    token = begun_ago(jobs, redis_client, job_id, 100, "t1")
    jobs.fail(job_id, token, JobError("broken", ErrorCode.TRAINER_FAILED))
    assert jobs.get(job_id).gpu_use.seconds["40gb"] == pytest.approx(100, abs=2)
    redis_client.rpush("cpu", "a message")
    waiting = [
        submit({**job_document, "tenant": tenant}, jobs, "r").job_id for tenant in ("acme", "zoo")
    ]
    redis_client.delete("cpu")
    assert TenantQueues(redis_client, HOUR).dispatch() == waiting[:1]
    if broken != "quotas":
        assert read_fleet(redis_client).held == set()
        assert {use.tenant for use in usage.all(usage.this_month())} == {"acme", "zoo"}


def test_a_start_that_cannot_be_read_counts_nothing(
    jobs: JobStore, redis_client: Redis, job_id: str
) -> None:
    token = begun_ago(jobs, redis_client, job_id, 100, "t1")
    redis_client.hset(record_key(job_id), items=["gpu_start", "40gb", "alive_at", "x"])
    assert jobs.requested_state(job_id, token) == "running"
    jobs.release(job_id, token, NOTE)
    assert jobs.get(job_id).gpu_use.seconds == {}


def test_a_quota_beyond_its_range_changes_nothing(redis_client: Redis) -> None:
    quotas = Quotas(redis_client)
    with pytest.raises(ValidationError):
        quotas.change("acme", {"max_waiting": 10**15})
    assert quotas.all() == {}


def test_the_readable_part_of_quotas_counts(redis_client: Redis) -> None:
    quotas = Quotas(redis_client)
    redis_client.hset("training:quotas", "acme", '{"money": 2, "max_waiting": 1e+15, "new": 1}')
    assert quotas.all() == {"acme": Quota(money=2)}
    redis_client.hset("training:quotas", "acme", "[]")
    assert quotas.change("acme", {"money": 3}) == quotas.of("acme") == Quota(money=3)
