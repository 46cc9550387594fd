"""Reading the messages of a broker in bounded memory: in queues, and those that workers hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

from redis import Redis

from worker.kombu_redis.transport import Keys
from worker.kombu_redis.unreadable import Place

MAX_STAGE_BYTES = 16 * 1024
"""Longer messages are submissions: those of stages carry a few ids."""

# In one reply, which bounds its memory.
_PAGE = 100
_READ_PAGE = (files("worker.kombu_redis") / "read_page.lua").read_text("utf-8")


@dataclass(frozen=True)
class StoredMessage:
    """A message in a queue, or an entry of the messages that workers hold.

    Attributes:
        queue: The queue; of a held one, the key of the unacknowledged messages.
        place: Where it is.
        text: Its text; of a long one, the beginning.
    """

    queue: str
    place: Place
    text: bytes

    @property
    def is_whole(self) -> bool:
        """Whether ``text`` is all of it."""
        return len(self.text) == self.place.size


def queued_messages(
    client: Redis, keys: Keys, queue: str, max_bytes: int
) -> Iterator[StoredMessage]:
    """Yield the messages of a queue, cut off at a length.

    Senders prepend, so a queue that changes meanwhile yields some messages twice and misses none.
    """
    for key in keys.lists(queue):
        start = 0
        while page := _raw(client, "EVAL", _READ_PAGE, 1, key, start, _PAGE, max_bytes):
            for size, text in zip(page[::2], page[1::2], strict=True):
                yield StoredMessage(queue, Place((key,), start, size), text)
                start += 1


def next_message(client: Redis, keys: Keys, queue: str) -> bytes | None:
    """Return a queue's next message; None if there is none, or it is a long one."""
    for key in keys.lists(queue):
        if found := _raw(client, "EVAL", _READ_PAGE, 1, key, -1, 1, MAX_STAGE_BYTES):
            size, text = found
            return cast("bytes", text) if len(text) == size else None
    return None


def held_messages(client: Redis, keys: Keys) -> Iterator[StoredMessage]:
    """Yield the entries of the messages that workers hold."""
    cursor = None
    while cursor != 0:
        cursor, page = _raw(client, "HSCAN", keys.unacked, cursor or 0, "COUNT", _PAGE)
        for tag, entry in cast("dict[bytes, bytes]", page).items():
            place = Place((keys.unacked, keys.unacked_index), tag, len(entry))
            yield StoredMessage(keys.unacked, place, entry)


def _raw(client: Redis, *command: str | float) -> Any:
    """Run a command whose reply need not be UTF-8."""
    return client.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
