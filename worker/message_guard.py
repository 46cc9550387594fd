"""The guard of a worker's queues: which messages Celery gets, and where the others go."""

import logging
from datetime import timedelta
from typing import Any

from redis import Redis, RedisError

from tasks.contract import record_key
from tasks.metrics import UNREADABLE_MESSAGES
from tasks.stages.messages import TaskMessage, read_message
from tasks.state.counters import Counters
from tasks.state.keys import UNREADABLE
from tasks.state.record import UNSTARTED_FIELD
from worker.kombu_redis.transport import DELIVERIES
from worker.kombu_redis.unreadable import UnreadableMessageError, UnreadableMessages

logger = logging.getLogger(__name__)

# Each one beyond the first follows a lost worker, or one that returned the message.
_MAX_DELIVERIES = 5


class MessageGuard:
    """Reads messages before Celery does.

    A message whose workers die before its stage starts is unreadable, too: nothing else ends that.
    The reconciler sends the stage again, and at last fails the job.

    Args:
        client: A connection to the broker that decodes responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def read(self, text: bytes, queue: str) -> dict[str, Any]:
        """Return a message of a queue.

        Raises:
            UnreadableMessageError: It must not reach Celery.
        """
        try:
            message = read_message(text, queue)
        except ValueError as error:
            raise UnreadableMessageError(str(error)) from None
        if message.deliveries >= _MAX_DELIVERIES:
            self._count_again(message)
        return message.document

    def _count_again(self, message: TaskMessage) -> None:
        """Start the count of deliveries again if the job has had a start meanwhile."""
        attempt = None
        try:
            if message.job_id is not None:
                key = record_key(message.job_id)
                attempt = self._redis.hget(key, "attempt")
                if attempt is not None and attempt == (message.attempt or "0"):
                    self._redis.hincrby(key, UNSTARTED_FIELD, 1)
        except RedisError as error:
            logger.warning("cannot check the deliveries of a message: %s", error)
            return
        if (attempt or "0") == (message.attempt or "0"):
            raise UnreadableMessageError(f"was delivered {_MAX_DELIVERIES} times without a start")
        message.document["properties"] |= {DELIVERIES: 0, "attempt": attempt}


def unreadable_messages(client: Redis, ttl: timedelta) -> UnreadableMessages:
    """Return the fleet's list of unreadable messages, which counts what it gets.

    Args:
        client: A connection to the broker that decodes responses.
        ttl: How long the counters are kept.
    """
    counters = Counters(client, ttl)
    return UnreadableMessages(
        client, UNREADABLE, lambda queue: counters.add(UNREADABLE_MESSAGES.one(queue))
    )
