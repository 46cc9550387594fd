"""Keys of a job live as long as it does, and for the TTL from its end."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from tasks.errors import JobError
from tasks.events import Note
from tasks.stages.submit import submit
from tasks.state.control import JobControl
from tasks.state.fencing_token import FencingToken
from tasks.state.fleet_snapshot import read_fleet
from tasks.state.job_store import JobStore
from tasks.state.tenants.tenant_queues import TenantQueues
from tests.waiting import wait_until

TTL = timedelta(seconds=1)
NOTE = Note(level="info", message="a note")


@pytest.fixture
def jobs(state: JobStore, redis_client: Redis) -> JobStore:
    return JobStore(redis_client, TTL)


@pytest.fixture
def control(redis_client: Redis) -> JobControl:
    return JobControl(redis_client, TTL)


@pytest.fixture
def job_id(jobs: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document | {"tenant": "acme"}, jobs, "result").job_id


def begin(jobs: JobStore, job_id: str) -> FencingToken:
    return jobs.begin(job_id, "prepare", worker="w", queue="cpu", tag="t").token


def live_for(ttls: float, keep: Callable[[], object]) -> None:
    """Repeat what keeps jobs alive for some times the TTL."""
    until = time.monotonic() + ttls * TTL.total_seconds()

    def is_over() -> bool:
        keep()
        return time.monotonic() > until

    wait_until(is_over, timeout_s=60, description="the time is over")


def assert_listed(jobs: JobStore, job_id: str) -> None:
    for tenant in (None, "acme"):
        assert [found for _, found in jobs.submitted(tenant, None, 10)] == [job_id]
    assert [record.id for record in jobs.newest(10)] == [job_id]
    assert next(iter(jobs.events(job_id)))[1].kind == "accepted"


def assert_all_keys_expire(redis_client: Redis, control: JobControl) -> None:
    """Check that nothing is left, even if another fleet's maintenance renews keys."""

    def is_empty() -> bool:
        control.renew_keys()
        keys = {key for key in redis_client.scan_iter() if not key.startswith("training:usage:")}
        return keys <= {"training:fleet", "cpu"}

    wait_until(is_empty, timeout_s=20, description="no key of a job is left")


def test_a_running_job_outlives_the_ttl_by_its_workers_questions(
    jobs: JobStore, control: JobControl, redis_client: Redis, job_id: str
) -> None:
    token = begin(jobs, job_id)
    live_for(3, lambda: jobs.requested_state(job_id, token))
    assert_listed(jobs, job_id)
    assert [job.id for job in control.summaries_in_flight()] == [job_id]
    assert read_fleet(redis_client).in_flight == 1
    assert TenantQueues(redis_client, TTL).in_flight() == {"acme": 1}
    jobs.fail(job_id, token, JobError("it broke"))
    assert_all_keys_expire(redis_client, control)


def test_a_paused_job_outlives_the_ttl(
    jobs: JobStore, control: JobControl, redis_client: Redis, job_id: str
) -> None:
    control.pause(job_id)
    live_for(3, control.renew_keys)
    assert_listed(jobs, job_id)
    assert control.resume(job_id)
    control.cancel(job_id)
    assert_all_keys_expire(redis_client, control)


def test_a_job_in_a_tenant_queue_outlives_the_ttl(
    jobs: JobStore, control: JobControl, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    redis_client.delete("training:fleet")
    job_id = submit(job_document | {"tenant": "acme"}, jobs, "result").job_id
    live_for(3, control.renew_keys)
    assert_listed(jobs, job_id)
    queues = TenantQueues(redis_client, TTL)
    assert queues.waiting() == {"cpu": {"acme": 1}}
    redis_client.hset("training:fleet", mapping={"room:cpu": 1})
    assert queues.dispatch() == [job_id]
    control.cancel(job_id)
    assert_all_keys_expire(redis_client, control)


def test_a_job_that_waits_for_its_retry_outlives_the_ttl(
    jobs: JobStore, control: JobControl, redis_client: Redis, job_id: str
) -> None:
    jobs.release(job_id, begin(jobs, job_id), NOTE, delay_s=3 * TTL.total_seconds())
    live_for(4, control.renew_keys)
    assert_listed(jobs, job_id)
    assert [job.id for job in control.take_due()] == [job_id]
    control.cancel(job_id)
    assert_all_keys_expire(redis_client, control)


def test_an_ended_job_leaves_the_lists_while_others_live(
    jobs: JobStore, control: JobControl, job_id: str, job_document: dict[str, Any]
) -> None:
    other = submit(job_document | {"tenant": "acme"}, jobs, "result").job_id
    control.cancel(other)
    assert len(jobs.submitted("acme", None, 10)) == 2

    def is_gone() -> bool:
        control.renew_keys()
        return len(jobs.submitted("acme", None, 10)) == 1

    wait_until(is_gone, timeout_s=20, description="the ended job has left the list")
    assert_listed(jobs, job_id)


def test_an_unreadable_entry_keeps_no_job_from_renewal(
    jobs: JobStore, control: JobControl, redis_client: Redis, job_id: str
) -> None:
    redis_client.set("training:job:odd", "no hash")
    redis_client.zadd("training:jobs:renewals", {"odd acme": 1.0, "junk": 2.0, "": 3.0})
    redis_client.zadd("training:jobs:renewals", {f"{job_id} acme": 4.0})
    assert control.renew_keys() == 4
    assert redis_client.zrange("training:jobs:renewals", 0, -1) == [f"{job_id} acme"]
    redis_client.delete("training:job:odd")
