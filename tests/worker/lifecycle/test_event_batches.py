from types import SimpleNamespace
from typing import Any, cast

from celery import Celery
from kombu.asynchronous.timer import Timer
from redis import Redis

from tasks.app import make_app
from tasks.settings.settings import Settings
from tests.waiting import wait_until
from worker.lifecycle.event_batches import EventBatches


def test_simultaneous_events_are_one_message(broker_url: str, redis_client: Redis) -> None:
    app: Celery = make_app(Settings(), broker_url)
    timer = Timer()  # type: ignore[no-untyped-call]
    turns = iter(timer)
    with (
        redis_client.pubsub() as subscriber,  # type: ignore[no-untyped-call]
        app.connection_for_write() as connection,
        app.events.Dispatcher(connection, buffer_group=["task"]) as dispatcher,
    ):
        subscriber.psubscribe("*celeryev*")
        assert subscriber.get_message(timeout=5)
        batches = EventBatches()
        batches.on_consumer_start(SimpleNamespace(event_dispatcher=dispatcher, timer=timer))

        def published() -> int:
            _, entry = next(turns)
            if entry is not None:
                timer.apply_entry(entry)  # type: ignore[no-untyped-call]
            return int(cast("Any", redis_client.info("commandstats"))["cmdstat_publish"]["calls"])

        redis_client.publish("unused-channel", "a first count")
        before = published()
        for name in ("task-received", "task-started", "task-succeeded"):
            dispatcher.send(name, uuid="a-task")
        assert published() == before
        wait_until(lambda: published() == before + 1, timeout_s=5, description="they are published")
        message = subscriber.get_message(timeout=5)
        assert message is not None
        assert message["channel"].endswith("task.multi")

        dispatcher.send("task-received", uuid="another")
        batches.on_consumer_shutdown(None)
        assert published() == before + 2


def test_worker_without_a_broker_stops_quietly() -> None:
    EventBatches().on_consumer_shutdown(None)
