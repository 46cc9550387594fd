from types import SimpleNamespace
from typing import Any, cast

from celery import Celery
from kombu.asynchronous.timer import Timer
from redis import Redis

from tasks.app import make_app
from tasks.settings.settings import Settings
from tests.waiting import wait_until
from worker.lifecycle.event_batches import EventBatches


def test_events_of_a_moment_are_one_message(broker_url: str, redis_client: Redis) -> None:
    app: Celery = make_app(Settings(), broker_url)
    timer = Timer()  # type: ignore[no-untyped-call]
    turns = iter(timer)
    with (
        redis_client.pubsub() as heard,  # type: ignore[no-untyped-call]
        app.connection_for_write() as connection,
        app.events.Dispatcher(connection, buffer_group=["task"]) as dispatcher,
    ):
        heard.psubscribe("*celeryev*")
        assert heard.get_message(timeout=5)
        step = EventBatches(None)
        step.start(SimpleNamespace(event_dispatcher=dispatcher, timer=timer))

        def told() -> int:
            _, entry = next(turns)
            if entry is not None:
                timer.apply_entry(entry)  # type: ignore[no-untyped-call]
            return int(cast("Any", redis_client.info("commandstats"))["cmdstat_publish"]["calls"])

        redis_client.publish("nobody", "so that there is a count")
        before = told()
        for name in ("task-received", "task-started", "task-succeeded"):
            dispatcher.send(name, uuid="a-task")
        assert told() == before
        wait_until(lambda: told() == before + 1, timeout_s=5, description="they are told")
        message = heard.get_message(timeout=5)
        assert message is not None
        assert message["channel"].endswith("task.multi")

        dispatcher.send("task-received", uuid="another")
        step.shutdown(None)
        assert told() == before + 2
