import time
from datetime import timedelta
from typing import Any

from kombu.connection import Connection
from kombu.entity import Queue
from redis import Redis

from worker.leases import renew


def test_held_messages_are_renewed_and_acknowledged_ones_do_not_come_back(
    broker_url: str, redis_client: Redis
) -> None:
    # kombu has no types, so nor have these.
    connect: Any = Connection
    with connect(broker_url) as connection, connection.channel() as channel:
        queue: Any = Queue("work", channel=channel)  # type: ignore[no-untyped-call]
        queue.declare()
        producer = connection.Producer(channel)
        for number in range(2):
            producer.publish({"number": number}, routing_key="work")
        held, done = queue.get(), queue.get()
        index = channel.unacked_index_key
        long_ago = time.time() - timedelta(hours=5).total_seconds()
        for message in (held, done):
            redis_client.zadd(index, {message.delivery_tag: long_ago})
        done.ack()
        channel.qos._delivered[done.delivery_tag] = done  # a renewal that comes just too late
        assert renew(redis_client, channel) == 2
        scores: dict[str, float] = dict(redis_client.zrange(index, 0, -1, withscores=True))  # type: ignore[arg-type]
        assert set(scores) == {held.delivery_tag}
        assert scores[held.delivery_tag] > time.time() - 60
        del channel.qos._delivered[done.delivery_tag]
        held.ack()
