"""The sweep: messages of workers that no longer renew them go back to their queues."""

import json
import logging
import time
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

from redis import Redis

logger = logging.getLogger(__name__)

# kombu's: what was delivered and not acknowledged, by delivery tag, and since when.
_UNACKED, _INDEX = "unacked", "unacked_index"
_PRIORITIES = (9, 6, 3, 0)
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
    """

    def __init__(self, client: Redis, timeout: timedelta) -> None:
        self._redis = client
        self._timeout_s = timeout.total_seconds()
        self._restore = client.register_script(_RESTORE)

    def restore_expired(self) -> list[str]:
        """Give the messages of lost workers back, to be delivered next.

        Returns:
            The ids of their tasks.
        """
        # By this machine's clock, as kombu and the renewal write it.
        latest = time.time() - self._timeout_s
        tags = cast(
            "list[str]", self._redis.zrangebyscore(_INDEX, "-inf", latest, start=0, num=_AT_ONCE)
        )
        restored = []
        for tag, entry in zip(tags, self._redis.hmget(_UNACKED, tags) if tags else [], strict=True):
            if entry is None:
                self._redis.zrem(_INDEX, tag)
                continue
            message, queue = _redelivered(cast("str", entry))
            keys = [_UNACKED, _INDEX, queue]
            if self._restore(keys=keys, args=[tag, latest, entry, json.dumps(message)]):
                restored.append(str(message["headers"].get("id")))
        if restored:
            logger.warning("their worker is lost, they go back: %s", ", ".join(restored))
        return restored


def _redelivered(entry: str) -> tuple[dict[str, Any], str]:
    """The message of an entry as it is delivered next, and the key of its queue's list."""
    message, _, queue = json.loads(entry)
    message["headers"]["redelivered"] = True
    properties = message["properties"]
    properties["delivery_info"]["redelivered"] = True
    properties["delivery_tag"] = str(uuid4())
    priority = next(p for p in _PRIORITIES if p <= (properties.get("priority") or 0))
    # Our queues are named by their routing keys.
    return message, f"{queue}\x06\x16{priority}" if priority else queue
