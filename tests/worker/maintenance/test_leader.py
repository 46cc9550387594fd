from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis import Redis

from tests.waiting import wait_until
from worker.maintenance.leader import LeaderLoop

TIMEOUT = timedelta(seconds=3)


@pytest.fixture
def leader(redis_client: Redis) -> Callable[..., LeaderLoop]:
    def make(*jobs: Any, redeliver: Any = lambda: None) -> LeaderLoop:
        return LeaderLoop(redis_client, TIMEOUT, jobs, redeliver=redeliver)

    return make


def test_one_worker_leads_and_another_replaces_a_lost_one(
    leader: Callable[..., LeaderLoop], redis_client: Redis
) -> None:
    first, second = leader(), leader()
    assert first.run_once()
    assert not second.run_once()
    assert first.run_once()
    assert redis_client.pttl("training:maintenance:lease") > 0
    # The first one is lost.
    wait_until(second.run_once, timeout_s=5, description="the second one takes over")
    assert not first.run_once()


def test_a_failing_job_does_not_stop_the_others(leader: Callable[..., LeaderLoop]) -> None:
    done: list[str] = []

    def unavailable() -> None:
        raise redis.ConnectionError("unavailable")

    def broken() -> None:
        raise ZeroDivisionError

    assert leader(unavailable, broken, lambda: done.append("done")).run_once()
    assert done == ["done"]


def test_redelivery_waits_until_workers_could_renew(
    leader: Callable[..., LeaderLoop],
) -> None:
    taken: list[str] = []
    problems = [redis.ConnectionError("unavailable")]

    def unavailable_once() -> None:
        if problems and taken:
            raise problems.pop()

    loop = leader(unavailable_once, redeliver=lambda: taken.append("taken"))
    loop.run_once()
    assert taken == []
    wait_until(lambda: loop.run_once() and bool(taken), timeout_s=5, description="it redelivers")
    taken[:] = ["before the outage"]
    loop.run_once()
    assert taken == ["before the outage"]
    wait_until(
        lambda: loop.run_once() and len(taken) > 1, timeout_s=5, description="it redelivers again"
    )
