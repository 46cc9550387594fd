import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from kombu.connection import Connection
from redis import Redis

from tests.worker.kombu_redis.leased_worker import KEYS
from worker.kombu_redis.redelivery import Sweep
from worker.kombu_redis.transport import Keys, Transport

TIMEOUT = timedelta(seconds=60)


@pytest.fixture(params=({}, KEYS), ids=["default", "chosen"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


@pytest.fixture
def keys(options: dict[str, Any]) -> Keys:
    return Keys.of(options)


@pytest.fixture
def connection(broker_url: str, redis_client: Redis, options: dict[str, Any]) -> Iterator[Any]:
    connect: Any = Connection
    with connect(broker_url, transport_options=options) as connection:
        connection.transport_cls = Transport
        yield connection


@pytest.fixture
def sweep(redis_client: Redis, keys: Keys) -> Sweep:
    return Sweep(redis_client, TIMEOUT, keys)


@pytest.fixture
def held(connection: Any, redis_client: Redis, keys: Keys) -> Callable[..., Any]:
    """A message that a worker took so long ago."""

    def take(age_s: float, priority: int = 0) -> Any:
        queue = connection.SimpleQueue("work")
        queue.put({}, headers={"id": "task-1"}, priority=priority)
        message = queue.get(timeout=5)
        redis_client.zadd(keys.unacked_index, {message.delivery_tag: time.time() - age_s})
        return message

    return take


@pytest.mark.parametrize("priority", [0, 3, 5, 9])
def test_what_nobody_renews_is_delivered_again_under_a_new_tag(
    sweep: Sweep,
    connection: Any,
    redis_client: Redis,
    keys: Keys,
    held: Callable[..., Any],
    priority: int,
) -> None:
    lost = held(age_s=61, priority=priority)
    assert sweep.restore_expired() == ["task-1"]
    assert sweep.restore_expired() == []
    again = connection.SimpleQueue("work").get(timeout=5)
    assert again.delivery_tag != lost.delivery_tag
    assert again.payload == lost.payload
    assert again.headers["redelivered"]
    assert again.delivery_info["redelivered"]
    assert redis_client.hkeys(keys.unacked) == [again.delivery_tag]
    again.ack()
    assert not redis_client.exists(keys.unacked, keys.unacked_index)


def test_what_is_renewed_stays_with_its_worker(
    sweep: Sweep, redis_client: Redis, keys: Keys, held: Callable[..., Any]
) -> None:
    message = held(age_s=30)
    assert sweep.restore_expired() == []
    assert redis_client.hkeys(keys.unacked) == [message.delivery_tag]
    message.ack()


def test_who_renews_at_the_last_moment_is_not_robbed(
    sweep: Sweep,
    redis_client: Redis,
    keys: Keys,
    held: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = held(age_s=61)
    read = redis_client.hmget

    def renewed_meanwhile(*args: Any) -> Any:
        redis_client.zadd(keys.unacked_index, {message.delivery_tag: time.time()})
        return read(*args)

    monkeypatch.setattr(redis_client, "hmget", renewed_meanwhile)
    assert sweep.restore_expired() == []
    assert redis_client.hkeys(keys.unacked) == [message.delivery_tag]
    message.ack()


def test_a_trace_without_a_message_is_removed(
    sweep: Sweep, redis_client: Redis, keys: Keys
) -> None:
    redis_client.zadd(keys.unacked_index, {"nothing": 1.0})
    assert sweep.restore_expired() == []
    assert redis_client.zcard(keys.unacked_index) == 0


def test_the_message_that_goes_back_is_what_kombu_itself_would_send(
    sweep: Sweep, connection: Any, redis_client: Redis, keys: Keys, held: Callable[..., Any]
) -> None:
    message = held(age_s=61)
    sweep.restore_expired()
    ours = json.loads(str(redis_client.lpop(keys.queue("work", 0))))
    redis_client.hset(keys.unacked, "t", json.dumps([message._raw, "", "work"]))
    connection.default_channel.qos.restore_by_tag("t")
    kombus = json.loads(str(redis_client.lpop(keys.queue("work", 0))))
    for it in (ours, kombus):
        it["properties"]["delivery_tag"] = ""
    assert ours == kombus
