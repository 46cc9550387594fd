import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
from kombu.connection import Connection
from kombu.entity import Queue
from redis import Redis

from tasks.state.connection import connect
from tests.waiting import wait_until
from worker.kombu_redis import leases
from worker.kombu_redis.leases import LeaseOptions, LeaseRenewal, adopt, renew
from worker.kombu_redis.transport import Transport
from worker.local.embedded_broker import EmbeddedBroker

LONG_AGO = time.time() - timedelta(hours=5).total_seconds()


@pytest.fixture
def connection(broker_url: str, redis_client: Redis) -> Iterator[Any]:
    make_connection: Any = Connection  # kombu has no types
    with make_connection(broker_url) as connection:
        connection.transport_cls = Transport
        yield connection


@pytest.fixture
def make_renewal() -> Iterator[Callable[[Any], LeaseRenewal]]:
    """Make the step of a consumer; no thread of it outlives the test."""
    steps: list[LeaseRenewal] = []

    def make(consumer: Any) -> LeaseRenewal:
        steps.append(LeaseRenewal(consumer))
        return steps[-1]

    yield make
    for step in steps:
        if step._thread is not None:
            step._thread.stop()


def consuming(connection: Any) -> tuple[Any, Any]:
    """Return a channel of a worker, and its queue."""
    channel = connection.channel()
    queue: Any = Queue("work", channel=channel)  # type: ignore[no-untyped-call]
    queue.declare()
    return channel, queue


def send(connection: Any, count: int) -> None:
    for number in range(count):
        connection.Producer().publish({"number": number}, routing_key="work", headers={})


def test_renewal_keeps_held_messages_only(connection: Any, redis_client: Redis) -> None:
    channel, queue = consuming(connection)
    send(connection, 2)
    held, done = queue.get(), queue.get()
    for message in (held, done):
        redis_client.zadd("unacked_index", {message.delivery_tag: LONG_AGO})
    done.ack()
    channel.qos._delivered[done.delivery_tag] = done  # a renewal just after the acknowledgement
    channel.qos._dirty.clear()
    renewed = renew(redis_client, "unacked_index", channel)
    assert renewed == ({held.delivery_tag}, {done.delivery_tag})
    scores: dict[str, float] = dict(redis_client.zrange("unacked_index", 0, -1, withscores=True))  # type: ignore[arg-type]
    assert set(scores) == {held.delivery_tag}
    assert scores[held.delivery_tag] > time.time() - 60
    del channel.qos._delivered[done.delivery_tag]
    held.ack()


def test_a_lost_delivery_cannot_touch_the_next_one(connection: Any, redis_client: Redis) -> None:
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


def test_running_messages_stay_held_if_the_connection_breaks_again(
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
    # No channel holds the other one, so it will be redelivered.
    assert set(redis_client.hkeys("unacked")) == {running.delivery_tag, waiting.delivery_tag}


def test_a_message_that_a_full_broker_does_not_record_returns(
    connection: Any, redis_client: Redis
) -> None:
    old, queue = consuming(connection)
    send(connection, 3)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ConnectionError, match="OOM"):
            queue.get()
        assert redis_client.llen("work") == 2
        new, _ = consuming(connection)
        with pytest.raises(redis.ConnectionError, match="OOM"):
            adopt(old, new)
    finally:
        redis_client.config_set("maxmemory", 0)
    newest, queue = consuming(connection)
    adopt(new, newest)
    assert [queue.get().payload["number"] for _ in range(3)] == [0, 1, 2]


class Timer:
    """The main loop's timer, as far as the step uses it; ``turn`` is one turn of the loop."""

    def call_repeatedly(self, seconds: float, call: Any) -> None:
        self.turn = call


def consumer_of(channel: Any, timeout_s: float, client: Redis) -> Any:
    """Return Celery's consumer, as far as the step uses it."""
    options = {"visibility_timeout": timeout_s}
    return SimpleNamespace(
        app=SimpleNamespace(
            conf=SimpleNamespace(broker_transport_options=options),
            lease_options=LeaseOptions(client),
        ),
        task_consumer=SimpleNamespace(channel=channel),
        timer=Timer(),
    )


def test_a_new_channel_adopts_running_messages_and_requeues_others(
    connection: Any,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    make_renewal: Callable[[Any], LeaseRenewal],
) -> None:
    old, queue = consuming(connection)
    send(connection, 3)
    running, waiting, done = queue.get(), queue.get(), queue.get()
    done.ack()
    monkeypatch.setattr(leases, "active_requests", [SimpleNamespace(message=running)])
    consumer = consumer_of(old, 3600, redis_client)
    step = make_renewal(consumer)
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
    _, queue = consuming(connection)
    assert queue.get().delivery_tag != waiting.delivery_tag


@pytest.mark.parametrize("reconnects", [False, True])
@pytest.mark.parametrize("settle", ["ack", "requeue"])
def test_failed_acknowledgements_are_repeated(
    tmp_path: Path, settle: str, reconnects: bool, make_renewal: Callable[[Any], LeaseRenewal]
) -> None:
    make_connection: Any = Connection
    with EmbeddedBroker(tmp_path) as broker, make_connection(broker.url) as connection:
        connection.transport_cls = Transport
        channel, queue = consuming(connection)
        send(connection, 1)
        message = queue.get()
        with connect(broker.url) as client:
            consumer = consumer_of(channel, 3600, client)
            step = make_renewal(consumer)
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
            assert consumer.task_consumer.channel.qos.unconfirmed == {}


@pytest.mark.parametrize("part", ["client", "on_renewal", "on_loop_alive"])
@pytest.mark.parametrize("error", [OSError("read-only file system"), ValueError("odd")], ids=repr)
def test_leases_are_renewed_after_any_error(
    connection: Any,
    redis_client: Redis,
    part: str,
    error: Exception,
    make_renewal: Callable[[Any], LeaseRenewal],
) -> None:
    errors = [error]

    def fail_once(*_: Any) -> None:
        if errors:
            raise errors.pop()

    class Client:
        def eval(self, *arguments: Any) -> Any:
            fail_once()
            return redis_client.eval(*arguments)

    channel, queue = consuming(connection)
    send(connection, 1)
    held = queue.get()
    consumer = consumer_of(channel, 1, redis_client)
    broken = {part: cast("Any", Client() if part == "client" else fail_once)}
    consumer.app.lease_options = replace(LeaseOptions(redis_client), **broken)
    step = make_renewal(consumer)
    step.start(consumer)
    step.stop(consumer)  # as in a warm shutdown, in which the loop need not turn
    wait_until(lambda: not errors, timeout_s=5, description="it has failed")
    redis_client.zadd("unacked_index", {held.delivery_tag: LONG_AGO})
    wait_until(
        lambda: bool(redis_client.zscore("unacked_index", held.delivery_tag) != LONG_AGO),
        timeout_s=5,
        description="the lease is renewed",
    )
    held.ack()


def test_leases_expire_if_the_main_loop_hangs(
    connection: Any,
    redis_client: Redis,
    caplog: pytest.LogCaptureFixture,
    make_renewal: Callable[[Any], LeaseRenewal],
) -> None:
    channel, queue = consuming(connection)
    send(connection, 1)
    held = queue.get()
    consumer = consumer_of(channel, 1, redis_client)
    step = make_renewal(consumer)
    step.start(consumer)

    def is_renewed() -> bool:
        score = redis_client.zscore("unacked_index", held.delivery_tag)
        return score is not None and score > LONG_AGO + 1

    def expire() -> None:
        redis_client.zadd("unacked_index", {held.delivery_tag: LONG_AGO})

    def hanging_rounds() -> int:
        return caplog.text.count("the main loop hangs")

    def wait_for_round(number: int) -> None:
        wait_until(
            lambda: hanging_rounds() >= number,
            timeout_s=10,
            description=f"{number} rounds report that the loop hangs",
        )

    expire()
    wait_until(
        lambda: consumer.timer.turn() or is_renewed(),
        timeout_s=10,
        description="the lease is renewed",
    )
    wait_for_round(1)
    expire()
    wait_for_round(3)
    assert not is_renewed()
    step.stop(consumer)  # as in a warm shutdown, in which the loop does not turn
    wait_until(is_renewed, timeout_s=10, description="the lease is renewed again")
    held.ack()
