"""Redelivery: messages that their workers no longer renew return to their queues."""

import json
import logging
from datetime import timedelta
from importlib.resources import files
from typing import Any

from redis import Redis

from worker.kombu_redis.transport import Keys, ReadMessage, read_json
from worker.kombu_redis.unreadable import Place, UnreadableMessageError, UnreadableMessages

logger = logging.getLogger(__name__)

# Bounds the time of one round; a larger backlog takes several.
_MAX_MESSAGES = 100


class Redelivery:
    """Returns messages that were not renewed for a visibility timeout.

    An entry that is no readable message is set aside, so that it delays no other one.

    Args:
        client: A connection to the broker that decodes responses.
        timeout: The visibility timeout.
        keys: The transport's keys. Queues are named by their routing keys, as in Celery.
        unreadable: Where unreadable entries go.
        read: Reads messages, as in ``use_for_redis``.
    """

    def __init__(
        self,
        client: Redis,
        timeout: timedelta,
        keys: Keys,
        unreadable: UnreadableMessages,
        read: ReadMessage = read_json,
    ) -> None:
        self._redis, self._keys = client, keys
        self._timeout_s = timeout.total_seconds()
        self._unreadable, self._read = unreadable, read
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
        tags = self._raw("ZRANGEBYSCORE", index, "-inf", renewed_before, "LIMIT", 0, _MAX_MESSAGES)
        entries = self._raw("HMGET", unacked, *tags) if tags else []
        redelivered = []
        for tag, entry in zip(tags, entries, strict=True):
            if entry is None:
                self._redis.zrem(index, tag)
                continue
            try:
                message, list_key = self._redelivered(entry)
            except UnreadableMessageError as error:
                place = Place((unacked, index), tag, len(entry))
                self._unreadable.add(entry, unacked, str(error), place)
                continue
            is_returned = self._redeliver(
                keys=[unacked, index, list_key],
                args=[tag, renewed_before, entry, json.dumps(message)],
            )
            if is_returned:
                redelivered.append(str(message["headers"].get("id")))
        if redelivered:
            logger.warning("redelivered messages of lost workers: %s", ", ".join(redelivered))
        return redelivered

    def _redelivered(self, entry: bytes) -> tuple[dict[str, Any], str]:
        """Return the message of an entry for its next delivery, and the list that it returns to.

        Raises:
            UnreadableMessageError: The entry is not one of kombu's.
        """
        try:
            message, _, queue = json.loads(entry)
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
            priority = int(message["properties"].get("priority") or 0)
            list_key = self._keys.queue(queue, priority)
            return self._read(json.dumps(message).encode(), queue), list_key
        except UnreadableMessageError:
            raise
        except Exception as error:  # noqa: BLE001  # an entry may be anything
            raise UnreadableMessageError(f"no entry of kombu's: {type(error).__name__}") from None

    def _raw(self, *command: Any) -> Any:
        """Run a command whose reply need not be UTF-8."""
        return self._redis.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
