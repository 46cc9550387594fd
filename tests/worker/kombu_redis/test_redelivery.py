import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from kombu.connection import Connection
from redis import Redis

from tests.worker.kombu_redis.leased_worker import KEYS
from worker.kombu_redis.redelivery import Redelivery
from worker.kombu_redis.transport import Keys, Transport
from worker.kombu_redis.unreadable import UnreadableMessages

TIMEOUT = timedelta(seconds=60)
UNREADABLE = "unreadable"


@pytest.fixture(params=({}, KEYS), ids=["default", "custom"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    options: dict[str, Any] = request.param
    return options


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
def redelivery(redis_client: Redis, keys: Keys) -> Redelivery:
    return Redelivery(redis_client, TIMEOUT, keys, UnreadableMessages(redis_client, UNREADABLE))


@pytest.fixture
def held(connection: Any, redis_client: Redis, keys: Keys) -> Callable[..., Any]:
    """Takes a message whose lease was renewed ``age_s`` seconds ago."""

    def take(age_s: float, priority: int = 0) -> Any:
        queue = connection.SimpleQueue("work")
        queue.put({}, headers={"id": "task-1"}, priority=priority)
        message = queue.get(timeout=5)
        redis_client.zadd(keys.unacked_index, {message.delivery_tag: time.time() - age_s})
        return message

    return take


@pytest.mark.parametrize("priority", [0, 3, 5, 9])
def test_an_expired_message_is_redelivered_under_a_new_tag(
    redelivery: Redelivery,
    connection: Any,
    redis_client: Redis,
    keys: Keys,
    held: Callable[..., Any],
    priority: int,
) -> None:
    lost = held(age_s=61, priority=priority)
    assert redelivery.redeliver_expired() == ["task-1"]
    assert redelivery.redeliver_expired() == []
    again = connection.SimpleQueue("work").get(timeout=5)
    assert again.delivery_tag != lost.delivery_tag
    assert again.payload == lost.payload
    assert again.headers["redelivered"]
    assert again.delivery_info["redelivered"]
    assert redis_client.hkeys(keys.unacked) == [again.delivery_tag]
    again.ack()
    assert not redis_client.exists(keys.unacked, keys.unacked_index)


def test_a_renewed_message_stays_with_its_worker(
    redelivery: Redelivery, redis_client: Redis, keys: Keys, held: Callable[..., Any]
) -> None:
    message = held(age_s=30)
    assert redelivery.redeliver_expired() == []
    assert redis_client.hkeys(keys.unacked) == [message.delivery_tag]
    message.ack()


def test_a_renewal_at_the_last_moment_counts(
    redelivery: Redelivery,
    redis_client: Redis,
    keys: Keys,
    held: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = held(age_s=61)
    execute: Any = redis_client.execute_command

    def renewed_meanwhile(*command: Any, **options: Any) -> Any:
        if command[0] == "HMGET":
            redis_client.zadd(keys.unacked_index, {message.delivery_tag: time.time()})
        return execute(*command, **options)

    monkeypatch.setattr(redis_client, "execute_command", renewed_meanwhile)
    assert redelivery.redeliver_expired() == []
    assert redis_client.hkeys(keys.unacked) == [message.delivery_tag]
    message.ack()


def test_an_index_entry_without_a_message_is_removed(
    redelivery: Redelivery, redis_client: Redis, keys: Keys
) -> None:
    redis_client.zadd(keys.unacked_index, {"nothing": 1.0})
    assert redelivery.redeliver_expired() == []
    assert redis_client.zcard(keys.unacked_index) == 0


def test_the_redelivered_message_equals_kombus(
    redelivery: Redelivery,
    connection: Any,
    redis_client: Redis,
    keys: Keys,
    held: Callable[..., Any],
) -> None:
    message = held(age_s=61)
    redelivery.redeliver_expired()
    redelivered = json.loads(str(redis_client.lpop(keys.queue("work", 0))))
    redis_client.hset(keys.unacked, "t", json.dumps([message._raw, "", "work"]))
    connection.default_channel.qos.restore_by_tag("t")
    restored_by_kombu = json.loads(str(redis_client.lpop(keys.queue("work", 0))))
    for message_document in (redelivered, restored_by_kombu):
        message_document["properties"]["delivery_tag"] = ""
    assert redelivered == restored_by_kombu


JUNK = {
    "no JSON": b"hello",
    "bytes": b"\xff\xfe",
    "a list": b"[1, 2, 3]",
    "a number": b"1",
    "no headers": json.dumps([{"body": "", "properties": {}}, "", "work"]).encode(),
    "wrong priority": json.dumps(
        [{"headers": {}, "properties": {"delivery_info": {}, "priority": "high"}}, "", "work"]
    ).encode(),
    "100,000 brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("entry", JUNK.values(), ids=JUNK)
def test_an_unreadable_entry_delays_no_message(
    redelivery: Redelivery,
    redis_client: Redis,
    keys: Keys,
    held: Callable[..., Any],
    entry: bytes,
) -> None:
    redis_client.hset(keys.unacked, b"junk\xff", entry)
    redis_client.zadd(keys.unacked_index, {b"junk\xff": 1.0})
    held(age_s=61)
    assert redelivery.redeliver_expired() == ["task-1"]
    assert not redis_client.exists(keys.unacked, keys.unacked_index)
    [aside] = UnreadableMessages(redis_client, UNREADABLE)
    assert (aside.queue, aside.size) == (keys.unacked, len(entry))
