"""kombu's Redis transport, with a delivery tag of its own for each delivery.

kombu gives a message that goes back to its queue to the next worker under the tag it had, so that
a worker that lost it (frozen, or cut off) acknowledges, renews or rejects what is another's. Here
a message that goes back gets a new tag: what is done under the old one touches nothing, and the
tag tells who holds a message.

kombu's own redelivery of lost workers' messages is off: ``redelivery.py`` replaces it.

Knows what the transport's keys in Redis are called, for those who look at them beside kombu.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from kombu.transport import TRANSPORT_ALIASES, redis
from redis import Redis


@dataclass(frozen=True)
class Keys:
    """Where kombu keeps messages.

    Attributes:
        unacked: The hash of what was delivered and not acknowledged, by delivery tag.
        unacked_index: The sorted set of these tags, by the time of the last renewal.
        prefix: Of every key.
    """

    unacked: str
    unacked_index: str
    prefix: str
    separator: str
    priority_steps: Sequence[int]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The keys under these ``broker_transport_options``."""
        names = "unacked_key", "unacked_index_key", "global_keyprefix", "sep", "priority_steps"
        unacked, index, prefix, sep, steps = (
            options.get(name, getattr(redis.Channel, name)) for name in names
        )
        return cls(prefix + unacked, prefix + index, prefix, sep, steps)

    def queue(self, name: str, priority: int) -> str:
        """The list of a queue's messages of about this priority."""
        step = self.priority_steps[bisect(self.priority_steps, min(max(priority, 0), 9)) - 1]
        return f"{self.prefix}{name}{self.separator}{step}" if step else self.prefix + name

    def lists(self, name: str) -> list[str]:
        """The lists of a queue's messages, of every priority."""
        return [self.queue(name, step) for step in self.priority_steps]


class QoS(redis.QoS):
    """Unacknowledged messages; does not sweep, and forgets nothing it was to tell the broker.

    Celery only logs that an acknowledgement failed, and the message would be held for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.untold: dict[str, bool | None] = {}
        """By delivery tag, whether to put it back; None where it is acknowledged."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        self.untold[delivery_tag] = None
        super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        del self.untold[delivery_tag]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back, or drop it."""
        self.untold[delivery_tag] = requeue
        super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
        del self.untold[delivery_tag]

    def tell_again(self) -> None:
        """Acknowledge and reject what failed, because the broker was away."""
        for tag, requeue in list(self.untold.items()):
            if requeue is None:
                self.ack(tag)
            else:
                self.reject(tag, requeue)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Leave messages of other workers alone."""


class Channel(redis.Channel):
    """A channel that gives messages new tags when they go back to their queues."""

    QoS = QoS
    _kept_client: Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> Redis:
        """One client for a pool: to make one takes longer than to send a command."""
        if asynchronous:
            made: Redis = super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
            return made
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept_client

    def _do_restore_message(self, payload: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        payload["properties"]["delivery_tag"] = self._next_delivery_tag()  # type: ignore[no-untyped-call]
        super()._do_restore_message(payload, *args, **kwargs)  # type: ignore[no-untyped-call]


class Transport(redis.Transport):
    """The transport of workers."""

    Channel = Channel


def use_for_redis() -> None:
    """Let this process use it wherever a broker's URL says Redis; before the first connection."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
