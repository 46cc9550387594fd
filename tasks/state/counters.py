"""The fleet's counters in Redis; ``tasks/metrics.py`` declares what is counted."""

import logging
from datetime import timedelta
from typing import cast

from redis import Redis, RedisError

from tasks.metrics import Counts
from tasks.state.keys import COUNTS

logger = logging.getLogger(__name__)


class Counters:
    """Adds to the counters outside of job scripts, and reads them.

    Args:
        client: A connection to Redis that decodes responses.
        ttl: How long the counters are kept after the last change.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis, self._ttl = client, ttl

    def add(self, counts: Counts) -> None:
        """Add to the counters; while the broker is unavailable, the counts are lost."""
        if not counts:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for field, by in counts.items():
                    pipe.hincrby(COUNTS, field, by)
                pipe.expire(COUNTS, self._ttl)
                pipe.execute()
        except RedisError as error:
            logger.warning("cannot count %s: %s", ", ".join(counts), error)

    def read(self) -> dict[str, int]:
        """Return all counters by their fields."""
        values = cast("dict[str, str]", self._redis.hgetall(COUNTS))
        return {field: int(value) for field, value in values.items()}
