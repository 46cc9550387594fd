"""The sweep: messages of workers that no longer renew them go back to their queues."""

import json
import logging
import time
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

from redis import Redis

from worker.kombu_redis.transport import Keys

logger = logging.getLogger(__name__)

_AT_ONCE = 100

# KEYS: unacked, its index, the queue. ARGV: tag, latest time of the last renewal, the entry, the
# message as it goes back. In one piece, so that an owner who renews meanwhile is never robbed.
_RESTORE = """
local renewed_at = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not renewed_at or tonumber(renewed_at) > tonumber(ARGV[2]) then return 0 end
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[3] then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[3], ARGV[4])
return 1
"""


class Sweep:
    """Gives back what has not been renewed for a visibility timeout.

    Args:
        client: A connection to the broker that decodes responses.
        timeout: The visibility timeout.
        keys: kombu's. Queues are named by their routing keys, as Celery does by itself.
    """

    def __init__(self, client: Redis, timeout: timedelta, keys: Keys) -> None:
        self._redis, self._keys = client, keys
        self._timeout_s = timeout.total_seconds()
        self._restore = client.register_script(_RESTORE)

    def restore_expired(self) -> list[str]:
        """Give the messages of lost workers back, to be delivered next.

        Returns:
            The ids of their tasks.
        """
        # By this machine's clock, as kombu and the renewal write it.
        latest = time.time() - self._timeout_s
        unacked, index = self._keys.unacked, self._keys.unacked_index
        tags = cast(
            "list[str]", self._redis.zrangebyscore(index, "-inf", latest, start=0, num=_AT_ONCE)
        )
        restored = []
        for tag, entry in zip(tags, self._redis.hmget(unacked, tags) if tags else [], strict=True):
            if entry is None:
                self._redis.zrem(index, tag)
                continue
            message, _, routing_key = json.loads(entry)
            keys = [unacked, index, self._keys.queue(routing_key, _priority_of(message))]
            if self._restore(keys=keys, args=[tag, latest, str(entry), _redelivered(message)]):
                restored.append(str(message["headers"].get("id")))
        if restored:
            logger.warning("their worker is lost, they go back: %s", ", ".join(restored))
        return restored


def _priority_of(message: dict[str, Any]) -> int:
    return int(message["properties"].get("priority") or 0)


def _redelivered(message: dict[str, Any]) -> str:
    """The message as it is delivered next."""
    message["headers"]["redelivered"] = True
    properties = message["properties"]
    properties["delivery_info"]["redelivered"] = True
    properties["delivery_tag"] = str(uuid4())
    return json.dumps(message)
