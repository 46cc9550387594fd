"""Unreadable messages: a message that cannot be processed is set aside, and its worker continues.

Celery ends the worker that fails to read a message, the message returns to its queue, and ends the
next worker. Here it goes to a capped list in Redis. Its text is in that list and never in a log,
because it may hold signed URLs.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from redis import Redis

logger = logging.getLogger(__name__)

# The list needs at most half a megabyte.
_MAX_ENTRIES = 100
_MAX_BYTES = 4000
_TTL_S = 30 * 86400
LOG_INTERVAL_S = 5.0
"""A flood of messages logs one line of each kind in this time."""

_DROP_OTHER_TYPES = (files("worker.kombu_redis") / "drop_other_types.lua").read_text("utf-8")
_SET_ASIDE = (files("worker.kombu_redis") / "set_aside.lua").read_text("utf-8")


class UnreadableMessageError(ValueError):
    """A message is not one that this fleet sends. The reason never quotes the message."""


class RateLimit(logging.Filter):
    """Passes one record of each kind in an interval, with the number of those it dropped.

    A kind is the text of a message before its arguments are filled in.

    Args:
        interval_s: The interval in seconds.
    """

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._kinds: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to pass a record."""
        passes_at, dropped = self._kinds.get(record.msg, (0.0, 0))
        now = time.monotonic()
        if now < passes_at:
            self._kinds[record.msg] = passes_at, dropped + 1
            return False
        self._kinds[record.msg] = now + self._interval_s, 0
        if dropped:
            record.msg = f"{record.msg} (and {dropped} more like this)"
        return True


logger.addFilter(RateLimit(LOG_INTERVAL_S))


@dataclass(frozen=True)
class UnreadableMessage:
    """A message that was set aside.

    Attributes:
        queue: The queue that it was in.
        reason: Why it is not readable.
        set_aside_at: By the broker's clock, in seconds since the epoch.
        size: Its length in bytes.
        text: Its beginning.
    """

    queue: str
    reason: str
    set_aside_at: float
    size: int
    text: str


@dataclass(frozen=True)
class Place:
    """Where an unreadable message is: in a list, or among the messages that workers hold.

    Attributes:
        keys: The key of the list; or those of the unacknowledged messages and of their index.
        member: The message's index in the list, or its delivery tag.
        size: Its length in bytes.
    """

    keys: tuple[str, ...]
    member: int | bytes
    size: int


class UnreadableMessages:
    """The list of messages that were set aside, the newest first.

    Args:
        client: A connection to the broker.
        key: The key of the list.
        on_added: Called with the queue of each added message.
    """

    def __init__(
        self, client: Redis, key: str, on_added: Callable[[str], None] = lambda queue: None
    ) -> None:
        self._redis, self._key, self._on_added = client, key, on_added

    def add(self, message: bytes, queue: str, reason: str, place: Place | None = None) -> bool:
        """Add a message.

        Args:
            message: Its text, or the beginning of it.
            queue: The queue that it was in.
            reason: Why it is not readable.
            place: Where it still is, and is removed from; None if it is nowhere.

        Returns:
            Whether it was added; False if it is not in its place any more.
        """
        beginning = message[:_MAX_BYTES]
        size, keys, source = len(message), [self._key], list[Any]()
        if place is not None:
            size = place.size
            keys += place.keys
            source = [place.member, size, beginning]
        text = beginning.decode(errors="backslashreplace")
        entry = json.dumps({"queue": queue, "reason": reason, "size": size, "text": text})
        arguments = [*keys, entry, _MAX_ENTRIES, _TTL_S, *source]
        if not self._redis.eval(_SET_ASIDE, len(keys), *arguments):
            return False
        logger.error("set aside an unreadable message of %d bytes in %s: %s", size, queue, reason)
        self._on_added(queue)
        return True

    def drop_other_types(self, lists: Sequence[str]) -> None:
        """Delete the keys that should be lists of messages and are not: nothing can use them."""
        dropped = cast("list[Any]", self._redis.eval(_DROP_OTHER_TYPES, len(lists), *lists))
        for index, key_type in zip(dropped[::2], dropped[1::2], strict=True):
            self.add(b"", lists[index - 1], f"the key was a {key_type}, not a list of messages")

    def __iter__(self) -> Iterator[UnreadableMessage]:
        for entry in cast("list[str]", self._redis.lrange(self._key, 0, -1)):
            yield UnreadableMessage(**json.loads(entry))

    def discard(self) -> int:
        """Empty the list and return the number of its messages."""
        with self._redis.pipeline() as pipe:
            pipe.llen(self._key)
            pipe.delete(self._key)
            count, _ = pipe.execute()
        return int(count)
