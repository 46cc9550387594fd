import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Consumer
from redis import Redis

from routing.queues import SUBMIT_QUEUE
from tests.waiting import wait_until
from worker.kombu_redis.queue_order import MAX_SUBMITS_IN_A_ROW, QUEUE_ORDER
from worker.kombu_redis.transport import Transport


class Receiver:
    """Receives one message after the other, as a worker does, and keeps their queues."""

    def __init__(self, connection: Any, queues: list[str]) -> None:
        self.received: list[str] = []
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        self._connection = connection
        named: Any = [Queue(name) for name in queues]  # type: ignore[no-untyped-call]
        consumer: Any = Consumer(channel, named, accept=["json"])  # type: ignore[no-untyped-call]
        consumer.register_callback(self._take)
        consumer.consume()

    def _take(self, body: object, message: Any) -> None:
        del body
        self.received.append(message.delivery_info["routing_key"])
        message.ack()

    def receive(self, count: int) -> list[str]:
        """Return the queues of the next messages."""
        self.received.clear()

        def enough() -> bool:
            self._connection.drain_events(timeout=5)
            return len(self.received) >= count

        wait_until(enough, timeout_s=20, description=f"{count} messages")
        return self.received[:count]


@pytest.fixture
def connection(broker_url: str, redis_client: Redis) -> Iterator[Connection]:
    options = {"queue_order_strategy": QUEUE_ORDER}
    with Connection(broker_url, transport_options=options) as connection:  # type: ignore[no-untyped-call]
        connection.transport_cls = Transport
        yield connection


def send(client: Redis, queue: str, count: int) -> None:
    message = {
        "body": "{}",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {"delivery_info": {"exchange": "", "routing_key": queue}, "delivery_tag": ""},
    }
    for number in range(count):
        message["properties"] |= {"delivery_tag": f"{queue}-{number}"}  # type: ignore[operator]
        client.lpush(queue, json.dumps(message))


def test_a_stage_waits_for_few_submits(connection: Connection, redis_client: Redis) -> None:
    send(redis_client, SUBMIT_QUEUE, 60)
    receiver = Receiver(connection, ["cpu", SUBMIT_QUEUE])
    receiver.receive(5)
    send(redis_client, "cpu", 1)
    assert receiver.receive(MAX_SUBMITS_IN_A_ROW).count("cpu") == 1
    send(redis_client, "cpu", 2)
    assert receiver.receive(2 * MAX_SUBMITS_IN_A_ROW + 2).count("cpu") == 2


def test_stages_do_not_starve_submits(connection: Connection, redis_client: Redis) -> None:
    send(redis_client, "cpu", 60)
    send(redis_client, SUBMIT_QUEUE, 1)
    receiver = Receiver(connection, ["cpu", SUBMIT_QUEUE])
    assert SUBMIT_QUEUE in receiver.receive(2)


def test_other_queues_keep_their_order(connection: Connection, redis_client: Redis) -> None:
    for queue in ("gpu.8gb", "gpu.24gb", "gpu.16gb"):
        send(redis_client, queue, 2)
    receiver = Receiver(connection, ["gpu.24gb", "gpu.16gb", "gpu.8gb"])
    expected = ["gpu.24gb", "gpu.24gb", "gpu.16gb", "gpu.16gb", "gpu.8gb", "gpu.8gb"]
    assert receiver.receive(6) == expected
