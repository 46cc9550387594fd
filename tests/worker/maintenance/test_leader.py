from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis import Redis

from tests.waiting import wait_until
from worker.maintenance.leader import LeaderLoop
from worker.periodic import ThreadWatch

TIMEOUT = timedelta(seconds=3)
LEASE = "training:maintenance:lease"


@pytest.fixture
def watch() -> ThreadWatch:
    return ThreadWatch()


@pytest.fixture
def leader(redis_client: Redis, watch: ThreadWatch) -> Callable[..., LeaderLoop]:
    def make(after_outage: timedelta = timedelta(0), **jobs: Any) -> LeaderLoop:
        return LeaderLoop(
            redis_client, TIMEOUT, jobs, lease=LEASE, watch=watch, after_outage=after_outage
        )

    return make


def test_one_worker_leads_and_another_replaces_a_lost_one(
    leader: Callable[..., LeaderLoop], redis_client: Redis
) -> None:
    first, second = leader(), leader()
    assert first.run_once()
    assert not second.run_once()
    assert first.run_once()
    assert redis_client.pttl(LEASE) > 0
    # The first one is lost.
    wait_until(second.run_once, timeout_s=5, description="the second one takes over")
    assert not first.run_once()


def test_a_failing_job_does_not_stop_the_others(
    leader: Callable[..., LeaderLoop], watch: ThreadWatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def unavailable() -> None:
        raise redis.ConnectionError("unavailable")

    def broken() -> None:
        raise ZeroDivisionError

    loop = leader(unavailable=unavailable, broken=broken, good=lambda: done.append("done"))
    for _ in range(3):
        assert loop.run_once()
    assert done == ["done"] * 3
    assert watch.take_failures() == {"broken": 3}
    assert [record.message.split()[0] for record in caplog.records] == ["unavailable", "broken"]


def test_jobs_wait_until_workers_could_renew(
    leader: Callable[..., LeaderLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    loop = leader(TIMEOUT / 2, redelivery=lambda: taken.append("taken"))

    def redelivers() -> bool:
        loop.run_once()
        return bool(taken)

    assert not redelivers()
    wait_until(redelivers, timeout_s=5, description="it redelivers")

    def unavailable() -> bool:
        raise redis.ConnectionError("unavailable")

    with monkeypatch.context() as broken:
        broken.setattr(loop._lock, "reacquire", unavailable)
        with pytest.raises(redis.ConnectionError):
            loop.run_once()
    taken.clear()
    assert not redelivers()
    wait_until(redelivers, timeout_s=5, description="it redelivers again")


def test_a_gap_counts_as_an_outage(leader: Callable[..., LeaderLoop]) -> None:
    """As when this process was suspended: so may the broker have been."""
    taken: list[str] = []
    loop = leader(TIMEOUT / 2, redelivery=lambda: taken.append("taken"))
    loop._stable_since -= 3600
    loop._answered_at -= TIMEOUT.total_seconds()
    assert loop.run_once()
    assert taken == []
