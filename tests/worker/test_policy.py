from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.signals import (
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from worker.policy import PolicyStep, WorkerPolicy, install_policies

SIGNALS = (worker_ready, worker_shutting_down, worker_shutdown, worker_process_shutdown)


class Recorder(WorkerPolicy):
    """A policy that records its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def on_ready(self) -> None:
        self._log.append(f"{self._name} ready")

    def on_consumer_start(self, consumer: Any) -> None:
        self._log.append(f"{self._name} start")

    def on_consumer_stop(self, consumer: Any) -> None:
        self._log.append(f"{self._name} stop")

    def on_consumer_shutdown(self, consumer: Any) -> None:
        self._log.append(f"{self._name} shutdown")

    def on_stopping(self) -> None:
        self._log.append(f"{self._name} stopping")

    def on_stopped(self) -> None:
        self._log.append(f"{self._name} stopped")

    def on_child_exit(self) -> None:
        self._log.append(f"{self._name} child exit")

    def stats(self) -> dict[str, Any]:
        return {self._name: len(self._log)}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    for signal in SIGNALS:
        monkeypatch.setattr(signal, "receivers", [])
        signal.sender_receivers_cache.clear()
    return Celery(set_as_current=False)


def test_policies_are_called_in_order_and_stopped_in_reverse(app: Celery) -> None:
    log: list[str] = []
    install_policies(app, [Recorder("one", log), Recorder("two", log)])
    [step_class] = app.steps["consumer"]
    assert step_class is PolicyStep
    step, consumer = step_class(SimpleNamespace(app=app)), SimpleNamespace()
    step.start(consumer)
    worker_ready.send(sender=None)
    worker_shutting_down.send(sender=None)
    step.stop(consumer)
    step.shutdown(consumer)
    worker_process_shutdown.send(sender=None)
    worker_shutdown.send(sender=None)
    assert log == [
        *("one start", "two start", "one ready", "two ready", "one stopping", "two stopping"),
        *("two stop", "one stop", "two shutdown", "one shutdown"),
        *("one child exit", "two child exit", "one stopped", "two stopped"),
    ]
    assert step.info(consumer) == {"one": 14, "two": 14}


def test_a_failing_policy_does_not_skip_the_next_one(app: Celery) -> None:
    class Failing(WorkerPolicy):
        def on_stopping(self) -> None:
            raise OSError("the disk is full")

    log: list[str] = []
    install_policies(app, [Failing(), Recorder("next", log)])
    worker_shutting_down.send(sender=None)
    assert log == ["next stopping"]
