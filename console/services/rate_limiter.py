"""Rate limits: a token bucket for each caller."""

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

_PERIOD_S = 60.0
_MAX_BUCKETS = 10_000


@dataclass(frozen=True)
class RateLimitStatus:
    """State of a caller's bucket after a request.

    Attributes:
        limit: Requests a minute.
        remaining: Requests that the caller may make now.
        reset_s: Seconds until the bucket is full.
        retry_after_s: Seconds until the next request is allowed; 0 if this one is.
    """

    limit: int
    remaining: int
    reset_s: int
    retry_after_s: int

    @property
    def headers(self) -> dict[str, str]:
        """Response headers with this state."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


class RateLimiter:
    """A bucket of requests for each caller, which fills up in a minute.

    Args:
        per_minute: Capacity of a bucket.
    """

    def __init__(self, per_minute: int) -> None:
        self._capacity = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def take(self, name: str) -> RateLimitStatus:
        """Take a token from a caller's bucket; ``retry_after_s`` above 0 refuses the request."""
        return self._status(*self._take_locally(name))

    def _take_locally(self, name: str) -> tuple[bool, float]:
        """Take a token from a bucket of this process; return whether it had one, and the rest."""
        now = time.monotonic()
        tokens, updated_at = self._buckets.get(name, (float(self._capacity), now))
        tokens = min(self._capacity, tokens + (now - updated_at) * self._capacity / _PERIOD_S)
        is_allowed = tokens >= 1
        tokens -= is_allowed
        self._buckets[name] = (tokens, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return is_allowed, tokens

    def _status(self, is_allowed: bool, tokens: float) -> RateLimitStatus:
        token_s = _PERIOD_S / self._capacity
        return RateLimitStatus(
            limit=self._capacity,
            remaining=int(tokens),
            reset_s=math.ceil((self._capacity - tokens) * token_s),
            retry_after_s=0 if is_allowed else math.ceil((1 - tokens) * token_s),
        )
