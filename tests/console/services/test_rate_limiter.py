import asyncio
from pathlib import Path

import pytest
from redis import Redis

from console.services import rate_limiter
from console.services.rate_limiter import RateLimiter, RateLimitStatus
from tasks.state.connection import connect
from worker.local.embedded_broker import EmbeddedBroker


def take(limiter: RateLimiter, name: str, times: int = 1) -> list[RateLimitStatus]:
    async def run() -> list[RateLimitStatus]:
        return [await limiter.take(name) for _ in range(times)]

    return asyncio.run(run())


def check_limit_of_3(limiter: RateLimiter) -> None:
    statuses = take(limiter, "one", 4)
    assert [it.limit for it in statuses] == [3] * 4
    assert [it.remaining for it in statuses] == [2, 1, 0, 0]
    assert [it.retry_after_s > 0 for it in statuses] == [False, False, False, True]
    assert 0 < statuses[3].retry_after_s <= 20
    assert 40 < statuses[3].reset_s <= 60
    assert take(limiter, "other")[0].retry_after_s == 0


def test_a_limited_caller_gets_the_time_to_retry(redis_client: Redis) -> None:
    check_limit_of_3(RateLimiter(redis_client, "api", 3))


def test_two_consoles_share_a_limit(redis_client: Redis, broker_url: str) -> None:
    with connect(broker_url) as other_client:
        limiters = [RateLimiter(it, "api", 4) for it in (redis_client, other_client)]
        statuses = [take(limiters[number % 2], "one")[0] for number in range(6)]
    assert [it.remaining for it in statuses] == [3, 2, 1, 0, 0, 0]
    assert [it.retry_after_s > 0 for it in statuses] == [False] * 4 + [True] * 2


def test_scopes_do_not_share_a_limit(redis_client: Redis) -> None:
    for scope in ("api", "login"):
        assert take(RateLimiter(redis_client, scope, 1), "one")[0].retry_after_s == 0


def test_a_bucket_refills_and_expires(redis_client: Redis) -> None:
    limiter = RateLimiter(redis_client, "api", 3)
    take(limiter, "one", 3)
    [key] = redis_client.keys("*")
    assert 0 < redis_client.ttl(key) <= 60
    updated_at = float(redis_client.hget(key, "updated_at") or 0)
    redis_client.hset(key, "updated_at", updated_at - 30)
    assert take(limiter, "one", 2)[0].retry_after_s == 0
    redis_client.hset(key, "updated_at", updated_at + 3600)  # the broker's clock was set back
    assert take(limiter, "one")[0].retry_after_s > 0


def test_a_console_limits_by_itself_without_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limiter, "_RECONNECT_S", 0.0)
    with EmbeddedBroker(tmp_path) as broker, connect(broker.url) as client:
        limiter = RateLimiter(client, "api", 3)
        assert take(limiter, "before")[0].retry_after_s == 0
    check_limit_of_3(limiter)
