"""Policies: what a worker process does besides running tasks, one small class for each concern.

A policy overrides the hooks it needs and is otherwise passive. ``install_policies`` connects the
hooks of a list of policies to Celery's signals and to a consumer bootstep; no other module does.

All hooks run in the worker's parent process, but for those of the child.
"""

from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, bootsteps
from celery.signals import (
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)


class WorkerPolicy:
    """The hooks of a worker's life. By default they do nothing."""

    def on_ready(self) -> None:
        """The worker takes messages from now on; called once."""

    def on_consumer_start(self, consumer: Any) -> None:
        """The main loop is about to start: at first, and after each reconnection."""

    def on_consumer_stop(self, consumer: Any) -> None:
        """The main loop stopped, to shut down or to reconnect; tasks still run."""

    def on_consumer_shutdown(self, consumer: Any) -> None:
        """The pool stopped: no task runs any more."""

    def on_stopping(self) -> None:
        """The worker was asked to stop; its task still runs."""

    def on_stopped(self) -> None:
        """The worker is about to exit."""

    def on_child_start(self) -> None:
        """The pool's child process begins. Called in the child."""

    def on_child_exit(self) -> None:
        """The pool's child process, which runs the tasks, is about to exit. Called in the child."""

    def stats(self) -> dict[str, Any]:
        """Return entries for Celery's ``inspect stats``, which Flower shows."""
        return {}


class PolicyStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """The consumer bootstep that calls the policies; Celery makes the instance.

    The policies are the app's ``worker_policies``.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._policies: Sequence[WorkerPolicy] = consumer.app.worker_policies

    def start(self, consumer: Any) -> None:
        """Start the policies, in the order of the list."""
        for policy in self._policies:
            policy.on_consumer_start(consumer)

    def stop(self, consumer: Any) -> None:
        """Stop the policies, in reverse order."""
        for policy in reversed(self._policies):
            policy.on_consumer_stop(consumer)

    def shutdown(self, consumer: Any) -> None:
        """Shut the policies down, in reverse order."""
        for policy in reversed(self._policies):
            policy.on_consumer_shutdown(consumer)

    def info(self, consumer: Any) -> dict[str, Any]:
        """Return the policies' statistics."""
        return {name: value for policy in self._policies for name, value in policy.stats().items()}


def install_policies(app: Celery, policies: Sequence[WorkerPolicy]) -> None:
    """Let Celery call the policies of this process's worker, in the order of the list."""
    app.worker_policies = policies
    app.steps["consumer"].add(PolicyStep)
    for policy in policies:
        _connect(worker_ready, policy.on_ready)
        _connect(worker_shutting_down, policy.on_stopping)
        _connect(worker_shutdown, policy.on_stopped)
        _connect(worker_process_init, policy.on_child_start)
        _connect(worker_process_shutdown, policy.on_child_exit)


def _connect(signal: Any, hook: Callable[[], None]) -> None:
    signal.connect(lambda **_: hook(), weak=False)
