import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from redis import Redis

from worker.kombu_redis.transport import Channel, Transport, read_json
from worker.kombu_redis.unreadable import UnreadableMessageError, UnreadableMessages


@pytest.fixture
def connection(broker_url: str, redis_client: Redis) -> Iterator[Any]:
    with Connection(broker_url) as connection:  # type: ignore[no-untyped-call]
        connection.transport_cls = Transport
        yield connection


@pytest.fixture
def unreadable(redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> UnreadableMessages:
    messages = UnreadableMessages(redis_client, "unreadable")
    monkeypatch.setattr(Channel, "unreadable", messages)
    return messages


def consume(connection: Any, queue: Any, on_message: Callable[[Any], None]) -> None:
    """Deliver what is in a queue."""
    with connection.Consumer(queue, on_message=on_message, auto_declare=True):
        try:
            while True:
                connection.drain_events(timeout=0.2)
        except socket.timeout:  # noqa: UP041  # kombu's own
            return


def test_a_channel_keeps_one_client_for_each_pool(connection: Any) -> None:
    channel = connection.default_channel
    first = channel._create_client()
    assert first.ping()
    assert channel._create_client() is first
    channel._disconnect_pools()
    assert channel._create_client() is not first


def test_each_delivery_has_its_own_tag_queue_and_count(
    connection: Any, redis_client: Redis
) -> None:
    body = {"content-type": "application/json", "content-encoding": "utf-8", "body": "{}"}
    info = {"exchange": "elsewhere", "routing_key": "training:job:x"}
    message = {**body, "headers": {}, "properties": {"delivery_tag": "held", "delivery_info": info}}
    redis_client.lpush("work", json.dumps(message))
    seen: list[Any] = []

    def requeue_once(message: Any) -> None:
        seen.append(message)
        message.reject(requeue=len(seen) < 3)

    consume(connection, Queue("work"), requeue_once)  # type: ignore[no-untyped-call]
    assert len({each.delivery_tag for each in seen} | {"held"}) == 4
    assert [each.properties["deliveries"] for each in seen] == [1, 2, 3]
    assert {each.delivery_info["routing_key"] for each in seen} == {"work"}
    assert not redis_client.exists("unacked", "unacked_index", "training:job:x", "work")


def test_what_celery_cannot_process_is_set_aside(
    connection: Any, redis_client: Redis, unreadable: UnreadableMessages
) -> None:
    def fail_once(message: Any) -> None:
        if message.payload == 1:
            raise LookupError("something that the guard does not know")
        good.append(message.payload)
        message.ack()

    good: list[int] = []
    for number in (1, 2):
        connection.Producer().publish(number, routing_key="work")
    consume(connection, Queue("work"), fail_once)  # type: ignore[no-untyped-call]
    assert good == [2]
    assert [each.reason for each in unreadable] == ["Celery fails: LookupError in fail_once"]
    assert not redis_client.exists("unacked", "unacked_index", "work")


def test_what_the_guard_refuses_never_reaches_celery(
    connection: Any,
    redis_client: Redis,
    unreadable: UnreadableMessages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(text: bytes, queue: str) -> Any:
        if text == b"junk":
            raise UnreadableMessageError("is junk")
        return read_json(text, queue)

    monkeypatch.setattr(Channel, "read", staticmethod(read))
    redis_client.lpush("work", "junk", "junk")
    connection.Producer().publish(2, routing_key="work")
    good: list[Any] = []
    consume(connection, Queue("work"), good.append)  # type: ignore[no-untyped-call]
    assert [message.payload for message in good] == [2]
    assert [(each.queue, each.text) for each in unreadable] == [("work", "junk")] * 2


def test_a_queue_that_is_no_list_is_deleted(
    connection: Any, redis_client: Redis, unreadable: UnreadableMessages
) -> None:
    redis_client.sadd("work", "x")
    redis_client.set("work\x06\x166", "y")
    good: list[Any] = []

    def take(message: Any) -> None:
        good.append(message)

    queue = Queue("work")  # type: ignore[no-untyped-call]
    consume(connection, queue, take)
    connection.Producer().publish(1, routing_key="work")
    consume(connection, queue, take)
    assert [message.payload for message in good] == [1]
    assert len(list(unreadable)) == 2


@pytest.mark.parametrize(
    "text",
    [
        b"junk",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"headers": {"compression": "zlib"}, "properties": {}, "body": "x"}',
        b'{"headers": [], "properties": {}, "body": "x"}',
        b'{"headers": {}, "properties": {"delivery_tag": "", "body_encoding": "x"}, "body": "x"}',
        b'{"headers": {}, "properties": {"delivery_tag": "x", "body_encoding": [1]}, "body": "x"}',
    ],
    ids=range(8),
)
def test_unreadable_broadcasts_are_skipped(
    connection: Any, redis_client: Redis, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    exchange = Exchange("pidbox", type="fanout")  # type: ignore[no-untyped-call]
    queue: Any = Queue("box", exchange)  # type: ignore[no-untyped-call]
    received: list[Any] = []

    def take(message: Any) -> None:
        received.append(message.payload)

    with connection.Consumer(queue, on_message=take, no_ack=True):
        with suppress(socket.timeout):  # the subscription
            connection.drain_events(timeout=0.1)
        redis_client.publish("/0.pidbox", text)
        connection.Producer().publish("good", exchange=exchange, routing_key="")
        while not received:
            connection.drain_events(timeout=1)
    assert received == ["good"]
