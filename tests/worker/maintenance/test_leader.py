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
def upkeep(redis_client: Redis) -> Callable[..., LeaderLoop]:
    def make(*duties: Any, restore: Any = lambda: None) -> LeaderLoop:
        return LeaderLoop(redis_client, TIMEOUT, duties, restore=restore)

    return make


def test_one_worker_at_a_time_sees_to_it_and_another_follows_a_lost_one(
    upkeep: Callable[..., LeaderLoop], redis_client: Redis
) -> None:
    first, second = upkeep(), upkeep()
    assert first.turn()
    assert not second.turn()
    assert first.turn()
    assert redis_client.pttl("training:maintenance:lease") > 0
    # The first one is lost.
    wait_until(second.turn, timeout_s=5, description="the second one takes over")
    assert not first.turn()


def test_a_duty_that_fails_holds_up_no_other(upkeep: Callable[..., LeaderLoop]) -> None:
    done: list[str] = []

    def away() -> None:
        raise redis.ConnectionError("away")

    def broken() -> None:
        raise ZeroDivisionError

    assert upkeep(away, broken, lambda: done.append("done")).turn()
    assert done == ["done"]


def test_nothing_is_taken_from_workers_until_they_had_time_to_renew(
    upkeep: Callable[..., LeaderLoop],
) -> None:
    taken: list[str] = []
    problems = [redis.ConnectionError("away")]

    def away_once() -> None:
        if problems and taken:
            raise problems.pop()

    it = upkeep(away_once, restore=lambda: taken.append("taken"))
    it.turn()
    assert taken == []
    wait_until(lambda: it.turn() and bool(taken), timeout_s=5, description="it restores")
    taken[:] = ["before the outage"]
    it.turn()
    assert taken == ["before the outage"]
    wait_until(lambda: it.turn() and len(taken) > 1, timeout_s=5, description="it restores again")
