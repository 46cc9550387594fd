"""Connections to the broker's Redis server: a named one, or the one that sentinels name."""

import os
from datetime import timedelta
from typing import Any

import redis
import redis.asyncio as redis_async
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from tasks.errors import NoBrokerError
from tasks.state.availability import RefusedError, raise_refusals
from tasks.state.broker_url import BrokerUrl

_RETRY_DELAY_S = 0.5
_REPLY_TIMEOUT_S = 10.0
# What redis-py's messages contain if only one side speaks TLS.
_NO_TLS = ("Timeout", "WRONG_VERSION_NUMBER", "UNEXPECTED_EOF", "record layer failure")
_REFUSED_WITHOUT_TLS = ("closed by server", "reset by peer")


def connect(broker_url: str, *, patience: timedelta = timedelta(0)) -> Redis:
    """Return a client of the broker that connects at the first command.

    Args:
        broker_url: The broker's URL, as the settings hold it. Behind sentinels, each connection
            goes to the master of that moment.
        patience: For how long a command is retried while the server is unavailable.
    """
    url = BrokerUrl.parse(broker_url)
    retries = int(patience.total_seconds() / _RETRY_DELAY_S)
    options = {
        **_options(url),
        "socket_timeout": _REPLY_TIMEOUT_S,
        "retry": Retry(ConstantBackoff(_RETRY_DELAY_S), retries),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
    }
    if url.master is not None:
        client: Redis = _sentinel(url, **options).master_for(url.master, ssl=url.is_tls)
        return client
    kind: type[Any] = redis.SSLConnection if url.is_tls else redis.Connection
    if url.socket is not None:
        kind = redis.UnixDomainSocketConnection
    return Redis.from_pool(redis.ConnectionPool(connection_class=kind, **options))


def connect_async(broker_url: str) -> AsyncRedis:
    """Return a client for an event loop; its timeout allows for commands that block."""
    url = BrokerUrl.parse(broker_url)
    options = {**_options(url), "socket_timeout": 30}
    if url.master is not None:
        login = {**url.sentinel_options, "retry": AsyncRetry(NoBackoff(), 0)}
        sentinel: Any = AsyncSentinel(url.hosts, sentinel_kwargs=login, **options)  # type: ignore[no-untyped-call]
        client: AsyncRedis = sentinel.master_for(url.master, ssl=url.is_tls)
        return client
    kind: type[Any] = redis_async.SSLConnection if url.is_tls else redis_async.Connection
    if url.socket is not None:
        kind = redis_async.UnixDomainSocketConnection
    return AsyncRedis.from_pool(redis_async.ConnectionPool(connection_class=kind, **options))


def connect_sentinels(broker_url: str) -> list[Redis]:
    """Return a client of each sentinel of a broker; none if it has no sentinels."""
    url = BrokerUrl.parse(broker_url)
    sentinels: list[Redis] = [] if url.master is None else _sentinel(url).sentinels
    return sentinels


def check_server(client: Redis, broker_url: str) -> None:
    """Check that a broker answers, and that it is a server that can hold the fleet's keys.

    Raises:
        NoBrokerError: It does not, or is not.
    """
    try:
        client.ping()
        check_mode(client)
    except RefusedError as error:
        raise NoBrokerError(f"the broker is unavailable: {error}") from error
    except redis.RedisError as error:
        raise NoBrokerError(why_unanswered(broker_url, error)) from error


def why_unanswered(broker_url: str, error: redis.RedisError) -> str:
    """Describe a failed connection; one side may speak TLS, and the other not."""
    url, text = BrokerUrl.parse(broker_url), f"the broker does not answer: {error}"
    for name, path in url.tls_files.items():
        if not os.access(path, os.R_OK):
            return f"{text}; {name} names no file that can be read"
    scheme = "sentinel" if url.master else "redis"
    if url.is_tls and any(sign in text for sign in _NO_TLS):
        return f"{text}; it may not speak TLS: try {scheme}:// instead of {scheme}s://"
    if not url.is_tls and any(sign in text for sign in _REFUSED_WITHOUT_TLS):
        return f"{text}; it may require TLS: try {scheme}s:// instead of {scheme}://"
    return text


def check_mode(client: Redis) -> None:
    """Check that a broker is neither a cluster nor a sentinel.

    Raises:
        NoBrokerError: It is.
    """
    mode = _mode(client)
    if mode == "cluster":
        raise NoBrokerError(
            "the broker is a Redis Cluster, which cannot change the keys of a job together: use a "
            "server without cluster mode, and sentinels for its failover"
        )
    if mode == "sentinel":
        raise NoBrokerError(
            "the broker's address is that of a sentinel: write sentinel://HOST:26379, and set "
            "TRAINING_BROKER_SENTINEL_MASTER"
        )


def _mode(client: Redis) -> str:
    """Return ``standalone``, ``cluster`` or ``sentinel``."""
    try:
        answer: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:  # a proxy without this command
        return "standalone"
    fields = (
        answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=False))
    )
    return str(fields.get("mode", "standalone"))


def _sentinel(url: BrokerUrl, **options: Any) -> Any:
    login = {**url.sentinel_options, "retry": Retry(NoBackoff(), 0)}
    return Sentinel(url.hosts, sentinel_kwargs=login, **options)  # type: ignore[no-untyped-call]


def _options(url: BrokerUrl) -> dict[str, Any]:
    raise_refusals()
    options: dict[str, Any] = {
        "db": url.database,
        "username": url.user,
        "password": url.password,
        "decode_responses": True,
        "health_check_interval": 30,
        **url.tls_options,
    }
    if url.socket is not None:
        return {**options, "path": url.socket}
    if url.master is None:
        [(options["host"], options["port"])] = url.hosts
    # Keepalive notices a network that drops every packet; a Unix socket has no network.
    return {**options, "socket_connect_timeout": 5, "socket_keepalive": True}
