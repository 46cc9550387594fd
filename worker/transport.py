"""kombu's Redis transport, with a delivery tag of its own for each delivery.

kombu gives a message that goes back to its queue to the next worker under the tag it had, so that
a worker that lost it (frozen, or cut off) acknowledges, renews or rejects what is another's. Here
a message that goes back gets a new tag: what is done under the old one touches nothing, and the
tag tells who holds a message.

kombu's own sweep for messages of lost workers is off: ``worker/sweep.py`` has ours.
"""

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis import Redis


class QoS(redis.QoS):
    """Unacknowledged messages; does not sweep."""

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
