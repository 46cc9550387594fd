"""Lease renewal: a message whose job runs here is never handed to another worker.

kombu's Redis transport gives every unacknowledged message back to its queue once it is older than
the visibility timeout, and never renews that age. Training takes hours; so the timeout would
have to be longer still, and a dead host's job would wait that long. This step renews the age of
the messages held by this process, so that the timeout can be a minute.

A thread with a connection of its own does it: timers of the worker's main loop stop with the
consumer, while its jobs still run through a warm shutdown.
"""

import logging
import threading
import time
from datetime import timedelta
from typing import Any

import redis
from celery import bootsteps

from tasks.state import connect

logger = logging.getLogger(__name__)


class LeaseRenewal(bootsteps.StartStopStep):  # type: ignore[misc]
    """Renews this worker's unacknowledged messages four times in each visibility timeout."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._channel: Any = None
        self._thread: threading.Thread | None = None

    def start(self, consumer: Any) -> None:
        """Take over the consumer's channel, a new one after each reconnection."""
        self._channel = consumer.task_consumer.channel
        if self._thread is None:
            connection = consumer.app.conf
            timeout_s = connection.broker_transport_options["visibility_timeout"]
            self._thread = threading.Thread(
                target=self._renew_for_ever,
                args=(connect(connection.broker_url), timedelta(seconds=timeout_s) / 4),
                name="lease-renewal",
                daemon=True,  # it ends with the process, not before: jobs outlive the consumer
            )
            self._thread.start()

    def _renew_for_ever(self, client: "redis.Redis", interval: timedelta) -> None:
        while True:
            time.sleep(interval.total_seconds())
            try:
                renew(client, self._channel)
            except redis.RedisError as error:
                logger.warning("cannot renew leases: %s", error)


def renew(client: "redis.Redis", channel: Any) -> int:
    """Make the messages a channel has delivered look as if they had been delivered now.

    Returns:
        How many there were.
    """
    tags = tuple(channel.qos._delivered)
    if tags:
        # XX: a message that is acknowledged meanwhile must not come back.
        client.zadd(channel.unacked_index_key, dict.fromkeys(tags, time.time()), xx=True)
    return len(tags)
