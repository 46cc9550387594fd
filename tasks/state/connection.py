"""Connections to the broker's Redis server."""

from datetime import timedelta
from typing import Any

import redis
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

_RETRY_DELAY_S = 0.5


def connect(broker_url: str, *, patience: timedelta = timedelta(0)) -> Redis:
    """Return a client of the broker that connects at the first command.

    Args:
        broker_url: A ``redis://``, ``rediss://`` or ``redis+socket://`` URL, as Celery takes it.
        patience: For how long a command is retried while the server is unavailable.
    """
    retries = int(patience.total_seconds() / _RETRY_DELAY_S)
    return Redis.from_url(
        **_options(broker_url),
        socket_timeout=10,
        retry=Retry(ConstantBackoff(_RETRY_DELAY_S), retries),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def connect_async(broker_url: str) -> AsyncRedis:
    """Return a client for an event loop; its timeout allows for commands that block."""
    return AsyncRedis.from_url(**_options(broker_url), socket_timeout=30)


def _options(broker_url: str) -> dict[str, Any]:
    url = broker_url.replace("redis+socket://", "unix://", 1)
    # Keepalive notices a network that drops every packet; a Unix socket has no network.
    network = {} if url.startswith("unix") else {"socket_keepalive": True}
    always = {"decode_responses": True, "socket_connect_timeout": 5, "health_check_interval": 30}
    return {"url": url, **always, **network}
