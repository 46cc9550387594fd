"""kombu's Redis transport with a guard before Celery and a new delivery tag for each delivery.

Celery ends a worker that cannot read a message. Here every message is read before Celery gets it,
and set aside if it is unreadable or if Celery fails on it all the same.

kombu redelivers a message under the tag it had. A worker that lost the message, because it was
frozen or cut off, would then acknowledge, renew or reject the delivery of another worker. Here each
delivery has a new tag: the old tag matches nothing, and the tag identifies the worker that holds
the message.

kombu's own redelivery of lost workers' messages is off; ``redelivery.py`` replaces it. ``Keys``
names the transport's keys in Redis.
"""

import logging
import traceback
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from queue import Empty
from typing import Any, ClassVar, Self
from uuid import uuid4

from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.json import dumps, loads
from redis import Redis, RedisError, ResponseError

from worker.kombu_redis.unreadable import (
    LOG_INTERVAL_S,
    RateLimit,
    UnreadableMessageError,
    UnreadableMessages,
)

logger = logging.getLogger(__name__)
logger.addFilter(RateLimit(LOG_INTERVAL_S))

ReadMessage = Callable[[bytes, str], dict[str, Any]]
"""Reads the text of a message in a queue; raises UnreadableMessageError."""

DELIVERIES = "deliveries"
"""The property of a message that counts its deliveries."""

_HOLD = (files("worker.kombu_redis") / "hold.lua").read_text("utf-8")


@dataclass(frozen=True)
class Keys:
    """The keys under which kombu keeps messages.

    Attributes:
        unacked: The hash of delivered, unacknowledged messages, by delivery tag.
        unacked_index: The sorted set of these tags, by the time of the last renewal.
        prefix: The prefix of every key.
        separator: Between a queue's name and a priority.
        priority_steps: The priorities that have their own list, ascending from 0.
    """

    unacked: str
    unacked_index: str
    prefix: str
    separator: str
    priority_steps: Sequence[int]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Return the keys under these ``broker_transport_options``."""
        names = "unacked_key", "unacked_index_key", "global_keyprefix", "sep", "priority_steps"
        unacked, index, prefix, sep, steps = (
            options.get(name, getattr(redis.Channel, name)) for name in names
        )
        return cls(prefix + unacked, prefix + index, prefix, sep, steps)

    def queue(self, name: str, priority: int) -> str:
        """Return the list that holds a queue's messages of this priority."""
        step = self.priority_steps[bisect(self.priority_steps, min(max(priority, 0), 9)) - 1]
        return f"{self.prefix}{name}{self.separator}{step}" if step else self.prefix + name

    def lists(self, name: str) -> list[str]:
        """Return the lists of a queue's messages, one for each step of priority."""
        return [self.queue(name, step) for step in self.priority_steps]


class QoS(redis.QoS):
    """Unacknowledged messages; keeps each acknowledgement until the broker has received it.

    Celery only logs that an acknowledgement failed, and would hold the message for ever. Leaves
    other workers' messages alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.unconfirmed: dict[str, bool | None] = {}
        """By delivery tag: whether to requeue a rejected message; None for an acknowledged one."""
        self.unheld: list[Any] = []
        """Messages that left their queues, and that the broker refused to record as held."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a delivered message, from now on by the broker's clock and not by this machine's."""
        info = message.delivery_info
        entry = dumps([message._raw, info["exchange"], info["routing_key"]])  # type: ignore[no-untyped-call]
        # kombu adds its prefix to the keys of other commands.
        prefix = self.channel.global_keyprefix
        keys = prefix + self.unacked_key, prefix + self.unacked_index_key
        try:
            with self.channel.conn_or_acquire() as client:
                client.eval(_HOLD, len(keys), *keys, delivery_tag, entry)
        except self.channel.connection_errors:
            self.unheld.append(message)
            raise
        virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def return_unheld(self) -> None:
        """Return the messages that could not be held to the fronts of their queues."""
        while self.unheld:
            message = self.unheld[-1]
            queue = message.delivery_info["routing_key"]
            key = self.channel._q_for_pri(queue, message.properties.get("priority") or 0)
            with self.channel.conn_or_acquire() as client:
                client.rpush(key, dumps(message._raw))  # type: ignore[no-untyped-call]
            self.unheld.pop()

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self.unconfirmed[delivery_tag] = None
        super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        del self.unconfirmed[delivery_tag]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue a message, or drop it."""
        self.unconfirmed[delivery_tag] = requeue
        super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
        del self.unconfirmed[delivery_tag]

    def retry_unconfirmed(self) -> None:
        """Repeat what failed because the broker was unavailable."""
        for tag, requeue in list(self.unconfirmed.items()):
            if requeue is None:
                self.ack(tag)
            else:
                self.reject(tag, requeue)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Do nothing, in place of kombu's own redelivery."""


def read_json(text: bytes, _: str) -> dict[str, Any]:
    """Read a message as kombu does."""
    message: dict[str, Any] = loads(text)  # type: ignore[no-untyped-call]
    return message


class Channel(redis.Channel):
    """A channel that reads each message before Celery does, and gives each delivery a new tag."""

    QoS = QoS
    read: ClassVar[ReadMessage] = staticmethod(read_json)
    unreadable: ClassVar[UnreadableMessages | None] = None
    _cached_client: Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> Redis:
        """Return one client for each pool: making one takes longer than sending a command."""
        if asynchronous:
            client: Redis = super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
            client.set_response_callback("BRPOP", self._popped)
            return client
        if self._cached_client is None or self._cached_client.connection_pool is not self.pool:
            self._cached_client = super()._create_client()  # type: ignore[no-untyped-call]
        return self._cached_client

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Consume a queue; a message that its consumer cannot process is set aside."""
        super().basic_consume(queue, *args, **kwargs)  # type: ignore[no-untyped-call]
        callbacks = self.connection._callbacks
        callbacks[queue] = partial(self._deliver, callbacks[queue], queue)

    def set_aside(self, message: bytes, queue: str, reason: str) -> None:
        """Keep a message that no worker can process. If the broker refuses that, it is lost."""
        try:
            if self.unreadable is not None:
                self.unreadable.add(message, queue, reason)
        except RedisError as error:
            logger.error("lost an unreadable message in %s (%s): %s", queue, reason, error)

    def refuse(self, message: Any, reason: str) -> None:
        """Acknowledge a delivered message and set it aside."""
        self.qos.reject(message.delivery_tag)
        self.set_aside(_text(message._raw), message.delivery_info["routing_key"], reason)

    def _popped(self, reply: list[bytes] | None, **_: Any) -> tuple[bytes, bytes] | None:
        """Return the reply of BRPOP with a message that Celery can process, or none."""
        if not reply:
            return None
        key, text = reply
        queue = key.decode().removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
        try:
            return key, _text(_delivered(Channel.read(text, queue), queue))
        except UnreadableMessageError as error:
            self.set_aside(text, queue, str(error))
            return None

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            self._drop_other_types(error, self.active_queues)
            raise Empty from None

    def _size(self, queue: str) -> int:
        try:
            size: int = super()._size(queue)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            self._drop_other_types(error, [queue])
            return 0
        return size

    def _drop_other_types(self, error: ResponseError, queues: Iterable[str]) -> None:
        """Delete keys of queues that are not lists: nothing can use them, and they end workers."""
        if self.unreadable is None or "WRONGTYPE" not in str(error):
            raise error
        keys = Keys.of(self.connection.client.transport_options)
        self.unreadable.drop_other_types([key for queue in queues for key in keys.lists(queue)])

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        return _delivered(super()._get(queue), queue)  # type: ignore[no-untyped-call]

    def _deliver(self, callback: Callable[[Any], None], queue: str, message: Any) -> None:
        """Pass a message on. Celery's errors must not end the worker, but for the broker's own."""
        try:
            callback(message)
        except (RedisError, OSError, OperationalError):
            raise
        except Exception as error:  # noqa: BLE001  # logged by its type: its text may quote the message
            if queue in self._fanout_queues:
                logger.warning("skipped an unreadable broadcast: %s", type(error).__name__)
                return
            self.qos.reject(message["properties"]["delivery_tag"])
            function = traceback.extract_tb(error.__traceback__)[-1].name
            reason = f"Celery fails: {type(error).__name__} in {function}"
            self.set_aside(_text(message), queue, reason)

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)  # type: ignore[no-untyped-call]
        except RecursionError:
            logger.warning("skipped an unreadable broadcast: RecursionError")
            raise Empty from None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        """Skip compressed broadcasts: a small one may need gigabytes."""
        headers = message.get("headers") if isinstance(message, dict) else None
        if not isinstance(headers, dict) or headers.get("compression"):
            logger.warning("skipped an unreadable broadcast: its headers")
            return True
        return super()._deliver_fanout_message(message, exchange)  # type: ignore[no-untyped-call]


def _text(message: dict[str, Any]) -> bytes:
    text: str = dumps(message)  # type: ignore[no-untyped-call]
    return text.encode()


def _delivered(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """Return a message as its next delivery.

    The tag is new, and the routing key is the queue that the message was in: a sender's own could
    send it anywhere when it is requeued.
    """
    properties = message["properties"]
    info = properties.get("delivery_info")
    is_again = isinstance(info, dict) and info.get("redelivered") is True
    properties |= {
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "", "routing_key": queue}
        | ({"redelivered": True} if is_again else {}),
        DELIVERIES: properties.get(DELIVERIES, 0) + 1,
    }
    return message


class Transport(redis.Transport):
    """The transport of workers."""

    Channel = Channel


class SentinelChannel(Channel, redis.SentinelChannel):
    """The same channel on the master that sentinels name."""


class SentinelTransport(Transport, redis.SentinelTransport):
    """The transport of workers whose broker is behind sentinels."""

    Channel = SentinelChannel


def use_for_redis(
    read: ReadMessage = read_json, unreadable: UnreadableMessages | None = None
) -> None:
    """Use these transports for a broker's URL in this process; call before the first connection.

    Args:
        read: Reads the text of a message from a queue as kombu would. It raises
            UnreadableMessageError for one that must not reach Celery.
        unreadable: Where such messages go.
    """
    Channel.read, Channel.unreadable = staticmethod(read), unreadable
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
