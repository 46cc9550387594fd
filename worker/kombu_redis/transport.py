"""kombu's Redis transport with a new delivery tag for each delivery.

kombu redelivers a message under the tag it had. A worker that lost the message, because it was
frozen or cut off, would then acknowledge, renew or reject the delivery of another worker. Here a
message that returns to its queue gets a new tag: the old tag matches nothing, and the tag
identifies the worker that holds the message.

kombu's own redelivery of lost workers' messages is off; ``redelivery.py`` replaces it. ``Keys``
names the transport's keys in Redis.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Self

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.json import dumps
from redis import Redis

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

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a delivered message, from now on by the broker's clock and not by this machine's."""
        info = message.delivery_info
        entry = dumps([message._raw, info["exchange"], info["routing_key"]])  # type: ignore[no-untyped-call]
        # kombu adds its prefix to the keys of other commands.
        prefix = self.channel.global_keyprefix
        keys = prefix + self.unacked_key, prefix + self.unacked_index_key
        with self.channel.conn_or_acquire() as client:
            client.eval(_HOLD, len(keys), *keys, delivery_tag, entry)
        virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

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


class Channel(redis.Channel):
    """A channel that gives messages new tags when they return to their queues."""

    QoS = QoS
    _cached_client: Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> Redis:
        """Return one client for each pool: making one takes longer than sending a command."""
        if asynchronous:
            client: Redis = super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
            return client
        if self._cached_client is None or self._cached_client.connection_pool is not self.pool:
            self._cached_client = super()._create_client()  # type: ignore[no-untyped-call]
        return self._cached_client

    def _do_restore_message(self, payload: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        payload["properties"]["delivery_tag"] = self._next_delivery_tag()  # type: ignore[no-untyped-call]
        super()._do_restore_message(payload, *args, **kwargs)  # type: ignore[no-untyped-call]


class Transport(redis.Transport):
    """The transport of workers."""

    Channel = Channel


class SentinelChannel(Channel, redis.SentinelChannel):
    """The same channel on the master that sentinels name."""


class SentinelTransport(Transport, redis.SentinelTransport):
    """The transport of workers whose broker is behind sentinels."""

    Channel = SentinelChannel


def use_for_redis() -> None:
    """Use these transports for a broker's URL in this process; call before the first connection."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"
