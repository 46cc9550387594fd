"""Lease renewal: a message whose job runs here is never handed to another worker.

kombu's Redis transport gives every unacknowledged message back to its queue once it is older than
the visibility timeout, and never renews that age. Training takes hours; so the timeout would
have to be longer still, and a dead host's job would wait that long. This step renews the age of
the messages held by this process, so that the timeout can be a minute.

A thread with a connection of its own does it: timers of the worker's main loop stop with the
consumer, while its jobs still run through a warm shutdown. The thread in turn would outlive a main
loop that hangs, so the loop tells it that it turns.

A lost connection takes no message from its job either: kombu gives back what a closed channel
held; here the next channel takes it over.

To use it elsewhere, take ``transport.py`` and ``sweep.py`` along: call ``use_for_redis`` first, add
the step, acknowledge late, and let one worker at a time call ``Sweep.restore_expired``.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import bootsteps
from celery.worker.state import active_requests

from worker.kombu_redis.transport import Keys

logger = logging.getLogger(__name__)


class LeaseRenewal(bootsteps.StartStopStep):  # type: ignore[misc]
    """Renews this worker's unacknowledged messages four times in each visibility timeout.

    The timeout is that of ``broker_transport_options``. Add what ``with_client`` gives to the
    application's ``steps["consumer"]``.
    """

    client: "redis.Redis"
    on_renewal: Callable[[int, int], None]
    on_turn: Callable[[], None]

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        transport = consumer.app.conf.broker_transport_options
        self._timeout_s: float = transport["visibility_timeout"]
        self._index = Keys.of(transport).unacked_index
        self._channel: Any = None
        self._thread: threading.Thread | None = None
        self._loop_turned_at: float | None = None
        """None while the loop is not meant to turn: on a lost connection, and in a shutdown."""

    @classmethod
    def with_client(
        cls,
        client: "redis.Redis",
        on_renewal: Callable[[int, int], None] = lambda held, lost: None,
        on_turn: Callable[[], None] = lambda: None,
    ) -> type["LeaseRenewal"]:
        """The step with a connection of its own.

        Args:
            client: To the broker.
            on_renewal: Called in each round in which the broker answers, with the messages held
                and those newly lost.
            on_turn: Called in each round in which the main loop does not hang.
        """
        calls = {"on_renewal": staticmethod(on_renewal), "on_turn": staticmethod(on_turn)}
        return type(cls.__name__, (cls,), {"client": client, **calls})

    def start(self, consumer: Any) -> None:
        """Take over the consumer's channel, a new one after each reconnection."""
        old, self._channel = self._channel, consumer.task_consumer.channel
        # Its messages are not given back when it is closed, which a lost connection does too.
        self._channel.do_restore = False
        if old is not None:
            adopt(old, self._channel)
        self._loop_turned_at = time.monotonic()
        self._loop_turns()
        consumer.timer.call_repeatedly(self._timeout_s / 4, self._loop_turns)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._renew_for_ever,
                name="lease-renewal",
                daemon=True,  # it ends with the process, not before: jobs outlive the consumer
            )
            self._thread.start()

    def stop(self, consumer: Any) -> None:
        """The loop stops, here or to reconnect; the jobs go on."""
        self._loop_turned_at = None

    def shutdown(self, consumer: Any) -> None:
        """The pool has stopped: what is not acknowledged now never will be here."""
        if self._channel is not None:
            self._channel.do_restore = True

    def _loop_turns(self) -> None:
        if self._loop_turned_at is not None:  # in a shutdown it turns, but not to its end
            self._loop_turned_at = time.monotonic()
        self._channel.qos.tell_again()

    def _renew_for_ever(self) -> None:
        lost: set[str] = set()
        while True:
            time.sleep(self._timeout_s / 4)
            turned_at = self._loop_turned_at
            if turned_at is not None and time.monotonic() - turned_at > self._timeout_s:
                logger.error("the main loop hangs; this worker's jobs are left to others")
                continue
            self.on_turn()
            try:
                held, gone = renew(self.client, self._index, self._channel)
                self.on_renewal(len(held), len(gone - lost))
            except redis.RedisError as error:
                logger.warning("cannot renew leases: %s", error)
                continue
            for tag in gone - lost:
                logger.warning("another worker took over the message %s", tag)
            lost = gone


def renew(client: "redis.Redis", index: str, channel: Any) -> tuple[set[str], set[str]]:
    """Make the messages a channel has delivered look as if they had been delivered now.

    Args:
        client: To the broker; one that puts no prefix before its keys.
        index: The key of kombu's index of delivered messages.
        channel: A channel of kombu's Redis transport.

    Returns:
        The delivery tags of those that are held, and of those that are another's now.
    """
    qos = channel.qos
    tags = [tag for tag in tuple(qos._delivered) if tag not in qos._dirty]
    if not tags:
        return set(), set()
    with client.pipeline() as pipe:
        # XX: a message that is acknowledged meanwhile must not come back.
        pipe.zadd(index, dict.fromkeys(tags, time.time()), xx=True)
        pipe.zmscore(index, tags)
        _, scores = pipe.execute()
    there = {tag for tag, score in zip(tags, scores, strict=True) if score is not None}
    # Not those that were acknowledged this moment.
    gone = set(tags) - there - qos._dirty - qos.untold.keys()
    return there, gone & qos._delivered.keys()


def adopt(old: Any, new: Any) -> None:
    """Let a new channel hold the messages whose jobs run on; the others go back to their queues.

    Celery forgets what it has not begun when the connection is lost. Should that be lost again
    here, what could not go back is not renewed any more, and so is swept.
    """
    old.qos._flush()
    new.qos.untold.update(old.qos.untold)
    kept = {request.message.delivery_tag for request in active_requests} | set(old.qos.untold)
    held = dict(old.qos._delivered)
    old.qos._delivered.clear()
    for tag in held.keys() & kept:
        held[tag].channel = new
        new.qos._delivered[tag] = held[tag]
    for tag in held.keys() - kept:
        new.qos.restore_by_tag(tag, leftmost=True)
