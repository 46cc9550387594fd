"""Redelivery: messages that their workers no longer renew return to their queues."""

import json
import logging
from datetime import timedelta
from importlib.resources import files
from typing import Any, cast
from uuid import uuid4

from redis import Redis

from worker.kombu_redis.transport import Keys

logger = logging.getLogger(__name__)

# Bounds the time of one round; a larger backlog takes several.
_MAX_MESSAGES = 100


class Redelivery:
    """Returns messages that were not renewed for a visibility timeout.

    Args:
        client: A connection to the broker that decodes responses.
        timeout: The visibility timeout.
        keys: The transport's keys. Queues are named by their routing keys, as in Celery.
    """

    def __init__(self, client: Redis, timeout: timedelta, keys: Keys) -> None:
        self._redis, self._keys = client, keys
        self._timeout_s = timeout.total_seconds()
        self._redeliver = client.register_script(
            (files("worker.kombu_redis") / "redeliver.lua").read_text("utf-8")
        )

    def redeliver_expired(self) -> list[str]:
        """Return the messages of lost workers to the front of their queues.

        Returns:
            The ids of their tasks.
        """
        seconds, microseconds = self._redis.time()
        renewed_before = seconds + microseconds / 1e6 - self._timeout_s
        unacked, index = self._keys.unacked, self._keys.unacked_index
        tags = cast(
            "list[str]",
            self._redis.zrangebyscore(index, "-inf", renewed_before, start=0, num=_MAX_MESSAGES),
        )
        entries = self._redis.hmget(unacked, tags) if tags else []
        redelivered = []
        for tag, entry in zip(tags, entries, strict=True):
            if entry is None:
                self._redis.zrem(index, tag)
                continue
            message, _, routing_key = json.loads(entry)
            queue = self._keys.queue(routing_key, _priority_of(message))
            is_returned = self._redeliver(
                keys=[unacked, index, queue],
                args=[tag, renewed_before, str(entry), _redelivered(message)],
            )
            if is_returned:
                redelivered.append(str(message["headers"].get("id")))
        if redelivered:
            logger.warning("redelivered messages of lost workers: %s", ", ".join(redelivered))
        return redelivered


def _priority_of(message: dict[str, Any]) -> int:
    return int(message["properties"].get("priority") or 0)


def _redelivered(message: dict[str, Any]) -> str:
    """Return the message for its next delivery, under a new tag."""
    message["headers"]["redelivered"] = True
    properties = message["properties"]
    properties["delivery_info"]["redelivered"] = True
    properties["delivery_tag"] = str(uuid4())
    return json.dumps(message)
