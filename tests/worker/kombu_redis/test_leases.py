import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu.connection import Connection
from kombu.entity import Queue
from redis import Redis

from tasks.state import connection as state
from tests.waiting import wait_until
from worker.kombu_redis import leases
from worker.kombu_redis.leases import LeaseRenewal, adopt, renew
from worker.kombu_redis.transport import Transport
from worker.local.embedded_broker import EmbeddedBroker

LONG_AGO = time.time() - timedelta(hours=5).total_seconds()


@pytest.fixture
def connection(broker_url: str, redis_client: Redis) -> Iterator[Any]:
    # kombu has no types, so nor has this.
    connect: Any = Connection
    with connect(broker_url) as connection:
        connection.transport_cls = Transport
        yield connection


def consuming(connection: Any) -> tuple[Any, Any]:
    """A channel as workers have it, and its queue."""
    channel = connection.channel()
    queue: Any = Queue("work", channel=channel)  # type: ignore[no-untyped-call]
    queue.declare()
    return channel, queue


def send(connection: Any, count: int) -> None:
    for number in range(count):
        connection.Producer().publish({"number": number}, routing_key="work", headers={})


def test_held_messages_are_renewed_and_acknowledged_ones_do_not_come_back(
    connection: Any, redis_client: Redis
) -> None:
    channel, queue = consuming(connection)
    send(connection, 2)
    held, done = queue.get(), queue.get()
    for message in (held, done):
        redis_client.zadd("unacked_index", {message.delivery_tag: LONG_AGO})
    done.ack()
    channel.qos._delivered[done.delivery_tag] = done  # a renewal that comes just too late
    channel.qos._dirty.clear()
    renewed = renew(redis_client, "unacked_index", channel)
    assert renewed == ({held.delivery_tag}, {done.delivery_tag})
    scores: dict[str, float] = dict(redis_client.zrange("unacked_index", 0, -1, withscores=True))  # type: ignore[arg-type]
    assert set(scores) == {held.delivery_tag}
    assert scores[held.delivery_tag] > time.time() - 60
    del channel.qos._delivered[done.delivery_tag]
    held.ack()


def test_who_lost_a_message_can_do_nothing_to_it_any_more(
    connection: Any, redis_client: Redis
) -> None:
    stale, queue = consuming(connection)
    send(connection, 1)
    lost = queue.get()
    stale.qos.restore_by_tag(lost.delivery_tag)
    _, queue = consuming(connection)
    taken = queue.get()
    assert taken.delivery_tag != lost.delivery_tag
    assert taken.headers["redelivered"]
    redis_client.zadd("unacked_index", {taken.delivery_tag: LONG_AGO})
    assert renew(redis_client, "unacked_index", stale)[1] == {lost.delivery_tag}
    lost.ack()
    assert redis_client.zscore("unacked_index", taken.delivery_tag) == pytest.approx(LONG_AGO)
    assert redis_client.hkeys("unacked") == [taken.delivery_tag]
    taken.ack()
    assert redis_client.hkeys("unacked") == []


def test_what_runs_is_held_even_where_the_connection_is_lost_again_at_once(
    connection: Any, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, queue = consuming(connection)
    send(connection, 2)
    waiting, running = queue.get(), queue.get()
    monkeypatch.setattr(leases, "active_requests", [SimpleNamespace(message=running)])
    new, _ = consuming(connection)

    def lost(*_: Any, **__: Any) -> None:
        raise redis.ConnectionError("lost again")

    monkeypatch.setattr(new.qos, "restore_by_tag", lost)
    with pytest.raises(redis.ConnectionError):
        adopt(old, new)
    newest, _ = consuming(connection)
    adopt(new, newest)
    assert list(newest.qos._delivered) == [running.delivery_tag]
    # The other one is nobody's now, and so is swept.
    assert set(redis_client.hkeys("unacked")) == {running.delivery_tag, waiting.delivery_tag}


class Timer:
    """The main loop's, as far as the step uses it; it turns when it is told to."""

    def call_repeatedly(self, seconds: float, call: Any) -> None:
        self.turn = call


def consumer_of(channel: Any, timeout_s: float) -> Any:
    """Celery's, as far as the step uses it."""
    options = {"visibility_timeout": timeout_s}
    return SimpleNamespace(
        app=SimpleNamespace(conf=SimpleNamespace(broker_transport_options=options)),
        task_consumer=SimpleNamespace(channel=channel),
        timer=Timer(),
    )


def test_a_new_channel_takes_over_what_runs_and_gives_back_what_does_not(
    connection: Any, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, queue = consuming(connection)
    send(connection, 3)
    running, waiting, done = queue.get(), queue.get(), queue.get()
    done.ack()
    monkeypatch.setattr(leases, "active_requests", [SimpleNamespace(message=running)])
    consumer = consumer_of(old, timeout_s=3600)
    step = LeaseRenewal.with_client(redis_client)(consumer)
    step.start(consumer)
    old.close()  # as kombu does when a connection is lost
    assert set(redis_client.hkeys("unacked")) == {running.delivery_tag, waiting.delivery_tag}
    new, _ = consuming(connection)
    consumer.task_consumer.channel = new
    step.start(consumer)
    assert list(new.qos._delivered) == [running.delivery_tag]
    assert redis_client.hkeys("unacked") == [running.delivery_tag]
    assert redis_client.llen("work") == 1
    running.ack()
    assert redis_client.hkeys("unacked") == []
    assert waiting.delivery_tag not in str(redis_client.lrange("work", 0, -1))


@pytest.mark.parametrize("reconnects", [False, True])
@pytest.mark.parametrize("settle", ["ack", "requeue"])
def test_what_the_broker_was_not_there_to_hear_is_told_again(
    tmp_path: Path, settle: str, reconnects: bool
) -> None:
    connect: Any = Connection
    with EmbeddedBroker(tmp_path) as broker, connect(broker.url) as connection:
        connection.transport_cls = Transport
        channel, queue = consuming(connection)
        send(connection, 1)
        message = queue.get()
        consumer = consumer_of(channel, timeout_s=3600)
        with state.connect(broker.url) as client:
            step = LeaseRenewal.with_client(client)(consumer)
            step.start(consumer)
            broker.stop()
            with pytest.raises(redis.ConnectionError):
                getattr(message, settle)()
            broker.start()
            assert client.hkeys("unacked") == [message.delivery_tag]
            if reconnects:
                consumer.task_consumer.channel, _ = consuming(connection)
                step.start(consumer)
            else:
                consumer.timer.turn()
            assert client.hkeys("unacked") == []
            assert client.llen("work") == (settle == "requeue")
            assert consumer.task_consumer.channel.qos.untold == {}


def test_a_worker_whose_main_loop_hangs_is_left_by_its_leases(
    connection: Any, redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    channel, queue = consuming(connection)
    send(connection, 1)
    held = queue.get()
    consumer = consumer_of(channel, timeout_s=1)
    step = LeaseRenewal.with_client(redis_client)(consumer)
    step.start(consumer)

    def is_renewed() -> bool:
        score = redis_client.zscore("unacked_index", held.delivery_tag)
        return score is not None and score > LONG_AGO + 1

    def forget() -> None:
        redis_client.zadd("unacked_index", {held.delivery_tag: LONG_AGO})

    def rounds_that_found_it_hanging() -> int:
        return caplog.text.count("the main loop hangs")

    def wait_for_round(number: int) -> None:
        wait_until(
            lambda: rounds_that_found_it_hanging() >= number,
            timeout_s=10,
            description=f"it is found to hang {number} times",
        )

    forget()
    wait_until(
        lambda: consumer.timer.turn() or is_renewed(), timeout_s=10, description="it is renewed"
    )
    wait_for_round(1)
    forget()
    wait_for_round(3)
    assert not is_renewed()
    step.stop(consumer)  # as in a warm shutdown, in which the loop is not meant to turn
    wait_until(is_renewed, timeout_s=10, description="it is renewed again")
    held.ack()
