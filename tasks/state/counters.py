"""What happened in the fleet, counted in Redis; what may be counted is in ``tasks/metrics.py``."""

import logging
from datetime import timedelta
from typing import cast

from redis import Redis, RedisError

from tasks.metrics import Counts
from tasks.state.keys import COUNTS

logger = logging.getLogger(__name__)


class Counters:
    """Counts what no script of a job counts, and tells all.

    Args:
        client: A connection to Redis that decodes responses.
        ttl: How long the counts are kept after the last one.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis, self._ttl = client, ttl

    def count(self, counts: Counts) -> None:
        """Add; a broker that is away only costs the figure."""
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
        """All counts by their fields."""
        found = cast("dict[str, str]", self._redis.hgetall(COUNTS))
        return {field: int(value) for field, value in found.items()}
