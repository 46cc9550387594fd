"""Which workers are there: each notes itself in Redis for as long as it lives."""

from datetime import timedelta
from typing import cast

from redis import Redis

from routing.classes import MemoryClass
from tasks.jobs.base import StrictModel

_PREFIX = "training:worker:"


class Presence(StrictModel):
    """A worker.

    Attributes:
        queues: What it serves, first served first.
        memory_class: Its GPU's; null on the CPU queue.
    """

    queues: tuple[str, ...]
    memory_class: MemoryClass | None


def note_presence(client: Redis, worker: str, presence: Presence, life: timedelta) -> None:
    """Note that a worker is there, for a while."""
    client.set(f"{_PREFIX}{worker}", presence.model_dump_json(), px=life)


def forget_presence(client: Redis, worker: str) -> None:
    """Note that a worker is gone."""
    client.delete(f"{_PREFIX}{worker}")


def live_workers(client: Redis) -> dict[str, Presence]:
    """The workers that are there, by name."""
    keys = sorted(cast("list[str]", list(client.scan_iter(f"{_PREFIX}*"))))
    values = cast("list[str | None]", client.mget(keys)) if keys else []
    return {
        key.removeprefix(_PREFIX): Presence.model_validate_json(value)
        for key, value in zip(keys, values, strict=True)
        if value is not None
    }


def next_larger_class(client: Redis, memory_class: MemoryClass | None) -> MemoryClass | None:
    """The smallest class above this one that a live worker has; None where there is none."""
    if memory_class is None:
        return None
    there = {worker.memory_class for worker in live_workers(client).values()}
    return min((it for it in there if it and it > memory_class), default=None)
