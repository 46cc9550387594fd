"""Rate limits: a token bucket for each caller, shared by all consoles of a broker.

While the broker is unavailable, each console limits by itself. Wrong keys have buckets too.
"""

import logging
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from importlib.resources import files

from redis import Redis, RedisError

from console.errors import TooManyError
from console.services.keys import RATE_LIMITS_PREFIX
from console.services.threads import in_thread
from tasks.redis_script import Key, ScriptFolder

logger = logging.getLogger(__name__)

_PERIOD_S = 60
_MAX_BUCKETS = 10_000
_WRONG_KEYS_OF_ADDRESS, _WRONG_KEYS = 60, 600
# A broker that does not answer would hold up every request.
_RECONNECT_S = 5.0

_lua = ScriptFolder(files("console.services") / "lua", {})


@_lua.script
def take_token(*, bucket_key: Key, capacity: int, period_s: int) -> list[str]:
    """Take a token from a bucket; return whether it had one, and the tokens that remain."""
    raise NotImplementedError


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


class TokenBuckets:
    """Buckets of this process, one for each name, which fill up in a minute.

    Args:
        per_minute: Capacity of a bucket.
    """

    def __init__(self, per_minute: int) -> None:
        self._capacity = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> RateLimitStatus:
        """Take a token from a bucket; ``retry_after_s`` above 0 means that it had none."""
        now = time.monotonic()
        tokens, updated_at = self._buckets.get(name, (float(self._capacity), now))
        tokens = min(self._capacity, tokens + (now - updated_at) * self._capacity / _PERIOD_S)
        taken = tokens >= 1
        tokens -= taken
        self._buckets[name] = (tokens, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return self.status(taken, tokens)

    def status(self, is_allowed: bool, tokens: float) -> RateLimitStatus:
        """Return the state of a bucket that holds N tokens."""
        token_s = _PERIOD_S / self._capacity
        return RateLimitStatus(
            limit=self._capacity,
            remaining=int(tokens),
            reset_s=math.ceil((self._capacity - tokens) * token_s),
            retry_after_s=0 if is_allowed else math.ceil((1 - tokens) * token_s),
        )


class RateLimiter:
    """A bucket of requests for each caller, which fills up in a minute.

    Args:
        client: The broker.
        scope: What is limited; each scope has its own buckets.
        per_minute: Capacity of a bucket.
    """

    def __init__(self, client: Redis, scope: str, per_minute: int) -> None:
        self._client, self._scope, self._capacity = client, scope, per_minute
        self.local = TokenBuckets(per_minute)
        self._unavailable_until = 0.0

    @in_thread
    def take(self, name: str) -> RateLimitStatus:
        """Take a token from a caller's bucket; ``retry_after_s`` above 0 refuses the request."""
        if time.monotonic() >= self._unavailable_until:
            try:
                return self.local.status(*self._take_shared(name))
            except RedisError as error:
                logger.warning("limiting requests without the broker: %s", error)
                self._unavailable_until = time.monotonic() + _RECONNECT_S
        return self.local.take(name)

    def _take_shared(self, name: str) -> tuple[bool, float]:
        taken, tokens = take_token(
            self._client,
            bucket_key=f"{RATE_LIMITS_PREFIX}{self._scope}:{name}",
            capacity=self._capacity,
            period_s=_PERIOD_S,
        )
        return taken == "1", float(tokens)


class WrongKeys:
    """Limits wrong keys, by address and of all addresses together. Right ones are not limited.

    A key of 256 bits cannot be guessed; the limit makes attempts cheap to answer and visible.

    Args:
        client: The broker, which counts for all consoles.
    """

    def __init__(self, client: Redis) -> None:
        self._by_address = RateLimiter(client, "wrong_keys_of_address", _WRONG_KEYS_OF_ADDRESS)
        self._overall = RateLimiter(client, "wrong_keys", _WRONG_KEYS)
        self._log = TokenBuckets(1)

    async def count(self, address: str) -> None:
        """Count a wrong key from an address.

        Raises:
            TooManyError: There were too many in the last minute.
        """
        statuses = await self._by_address.take(address), await self._overall.take("all")
        retry_after_s = max(status.retry_after_s for status in statuses)
        if retry_after_s:
            if not self._log.take("").retry_after_s:
                logger.warning("too many wrong keys, the last one from %s", address)
            raise TooManyError("too many wrong keys; retry with the right one", retry_after_s)
