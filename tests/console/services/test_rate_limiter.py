import asyncio

from console.services.rate_limiter import RateLimiter, RateLimitStatus


def take(limiter: RateLimiter, name: str, times: int = 1) -> list[RateLimitStatus]:
    async def run() -> list[RateLimitStatus]:
        return [await limiter.take(name) for _ in range(times)]

    return asyncio.run(run())


def test_a_limited_caller_gets_the_time_to_retry() -> None:
    limiter = RateLimiter(3)
    statuses = take(limiter, "one", 4)
    assert [it.remaining for it in statuses] == [2, 1, 0, 0]
    assert [it.retry_after_s > 0 for it in statuses] == [False, False, False, True]
    assert 0 < statuses[3].retry_after_s <= 20
    assert take(limiter, "other")[0].retry_after_s == 0
