"""Lease renewal: a message whose task runs here is never delivered to another worker.

kombu's Redis transport returns an unacknowledged message to its queue when it is older than the
visibility timeout, and never renews that age. A training takes hours, so the timeout would have to
be longer, and the message of a lost host would wait as long. The renewal refreshes the age of the
messages that this process holds, so that the timeout can be a minute.

A thread with its own connection renews: timers of the worker's main loop stop with the
consumer, while tasks still run through a warm shutdown. A main loop that hangs must not keep its
messages for ever, so the thread stops renewing when the loop stops turning.

A lost connection takes no message from its task either. kombu returns what a closed channel held;
here the next channel adopts it.

To use this package elsewhere: call ``use_for_redis`` first, call ``install_leases``, acknowledge
late, and let one worker at a time call ``Redelivery.redeliver_expired``.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, cast

from celery import Celery, bootsteps
from celery.worker.state import active_requests
from redis import Redis

from worker.kombu_redis.transport import Keys
from worker.periodic import PeriodicThread, ThreadWatch

logger = logging.getLogger(__name__)

# A lease survives three failed renewals.
_RENEWALS_PER_TIMEOUT = 4
_RENEW = (files("worker.kombu_redis") / "renew.lua").read_text("utf-8")


@dataclass(frozen=True)
class LeaseOptions:
    """What lease renewal needs beside Celery's consumer.

    Attributes:
        client: A connection to the broker of the renewal's own.
        watch: Watches the renewal's thread.
        on_renewal: Called after each renewal with the numbers of held and of newly lost messages.
        on_loop_alive: Called in each round in which the main loop turns. It must not wait.
    """

    client: Redis
    watch: ThreadWatch = field(default_factory=ThreadWatch)
    on_renewal: Callable[[int, int], None] = lambda held, lost: None
    on_loop_alive: Callable[[], None] = lambda: None


def install_leases(app: Celery, options: LeaseOptions) -> None:
    """Let the workers of an app renew their leases."""
    app.lease_options = options
    app.steps["consumer"].add(LeaseRenewal)


class LeaseRenewal(bootsteps.StartStopStep):  # type: ignore[misc]
    """Renews this worker's unacknowledged messages four times in each visibility timeout.

    Celery makes the instance; the options are the app's ``lease_options``, and the timeout is that
    of its ``broker_transport_options``.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        transport = consumer.app.conf.broker_transport_options
        self._options: LeaseOptions = consumer.app.lease_options
        self._timeout_s: float = transport["visibility_timeout"]
        self._interval_s = self._timeout_s / _RENEWALS_PER_TIMEOUT
        self._index = Keys.of(transport).unacked_index
        self._channel: Any = None
        self._thread: PeriodicThread | None = None
        self._lost: set[str] = set()
        self._loop_turned_at: float | None = None
        """None while the loop does not have to turn: without a connection, and in a shutdown."""

    def start(self, consumer: Any) -> None:
        """Adopt the messages of the channel before, after each reconnection."""
        old, self._channel = self._channel, consumer.task_consumer.channel
        # A channel is closed when its connection is lost, too, and must not return its messages.
        self._channel.do_restore = False
        if old is not None:
            adopt(old, self._channel)
        self._loop_turned_at = time.monotonic()
        self._on_loop_turn()
        consumer.timer.call_repeatedly(self._interval_s, self._on_loop_turn)
        if self._thread is None:
            # A daemon ends with the process, not before: tasks outlive the consumer.
            self._thread = PeriodicThread(
                self._options.watch, "lease-renewal", self._interval_s, self._run_round
            )
            self._thread.start()

    def stop(self, consumer: Any) -> None:
        """Expect no turns: the loop stops, to shut down or to reconnect. Tasks still run."""
        self._loop_turned_at = None

    def shutdown(self, consumer: Any) -> None:
        """Let the channel return what is unacknowledged: the pool has stopped."""
        if self._channel is not None:
            self._channel.do_restore = True
            with suppress(*self._channel.connection_errors):
                self._channel.qos.return_unheld()

    def _on_loop_turn(self) -> None:
        # In a shutdown the loop may turn a few times more, which does not count.
        if self._loop_turned_at is not None:
            self._loop_turned_at = time.monotonic()
        self._channel.qos.retry_unconfirmed()

    def _run_round(self) -> None:
        turned_at = self._loop_turned_at
        if turned_at is not None and time.monotonic() - turned_at > self._timeout_s:
            logger.error("the main loop hangs: this worker's leases are not renewed")
            return
        options = self._options
        renewed = options.watch.attempt("lease-renewal", self._renew)
        options.watch.attempt("health", options.on_loop_alive)
        if renewed is not None:
            options.watch.attempt("registration", lambda: options.on_renewal(*renewed))

    def _renew(self) -> tuple[int, int]:
        """Renew the leases; return the numbers of held and of newly lost messages."""
        held, lost = renew(self._options.client, self._index, self._channel)
        newly_lost, self._lost = lost - self._lost, lost
        for tag in newly_lost:
            logger.warning("another worker took over the message %s", tag)
        return len(held), len(newly_lost)


def renew(client: Redis, index: str, channel: Any) -> tuple[set[str], set[str]]:
    """Renew the leases of the messages that a channel has delivered.

    Args:
        client: A connection to the broker that puts no prefix before its keys.
        index: The key of kombu's index of delivered messages.
        channel: A channel of this package's transport.

    Returns:
        The delivery tags of held messages, and those of lost messages.
    """
    qos = channel.qos
    tags = [tag for tag in tuple(qos._delivered) if tag not in qos._dirty]
    if not tags:
        return set(), set()
    held = set(cast("list[str]", client.eval(_RENEW, 1, index, *tags)))
    # A message that was acknowledged this moment is not lost.
    lost = set(tags) - held - qos._dirty - qos.unconfirmed.keys()
    return held, lost & qos._delivered.keys()


def adopt(old: Any, new: Any) -> None:
    """Let a new channel hold the messages of running tasks, and requeue the others.

    Celery forgets the tasks that it has not begun when the connection is lost. If the connection is
    lost again here, a message that was not requeued is no longer renewed, and so is redelivered.
    """
    old.qos._flush()
    new.qos.unheld = old.qos.unheld
    new.qos.return_unheld()
    new.qos.unconfirmed.update(old.qos.unconfirmed)
    running = {request.message.delivery_tag for request in active_requests}
    adopted = running | set(old.qos.unconfirmed)
    delivered = dict(old.qos._delivered)
    old.qos._delivered.clear()
    for tag in delivered.keys() & adopted:
        delivered[tag].channel = new
        new.qos._delivered[tag] = delivered[tag]
    for tag in delivered.keys() - adopted:
        new.qos.restore_by_tag(tag, leftmost=True)
