"""Which workers are there: each notes itself in Redis for as long as it lives."""

import contextlib
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import cast

from pydantic import ConfigDict, ValidationError
from redis import Redis, RedisError

from routing.classes import MemoryClass
from routing.engines import DIFFUSERS, INVOKE, Engine
from routing.queues import engine_of
from tasks.state.keys import WORKER_PREFIX, WORKERS
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

_REMEDIES: dict[Engine, str] = {
    INVOKE: "; set TRAINING_INVOKE_PYTHON on a GPU worker, and see 'training-worker engines' there"
}


class GpuStats(StrictModel):
    """What the driver told of a GPU a moment ago.

    Attributes:
        memory_bytes: All of its memory.
        used_bytes: What of it is in use.
        utilization: The share of the time that it computes; null where that is not told.
        temperature_c: In degrees Celsius; null where that is not told.
    """

    memory_bytes: int
    used_bytes: int
    utilization: float | None = None
    temperature_c: int | None = None


class WorkerInfo(StrictModel):
    """A worker.

    Attributes:
        version: Its program's, as jobs have one.
        queues: What it serves, first served first.
        memory_class: Its GPU's; null on the CPU queue, as all of the GPU.
        gpu_uuid: The GPU that it is pinned to.
        gpu_name: The product's name.
        gpu_mib: The GPU's memory; 0 where it is emulated.
        quarantined: Why the worker takes no messages now.
        engines: What it can train with.
        figures: The GPU's, where the driver tells them.
    """

    # Other versions of the program may note more.
    model_config = ConfigDict(extra="ignore")

    version: int = 1
    queues: tuple[str, ...]
    memory_class: MemoryClass | None
    gpu_uuid: str | None = None
    gpu_name: str | None = None
    gpu_mib: int = 0
    quarantined: str | None = None
    engines: tuple[Engine, ...] = (DIFFUSERS,)
    figures: GpuStats | None = None


class WorkerHeartbeat:
    """A worker's own note that it is there.

    Args:
        client: A connection to the broker.
        worker: The worker's name.
        presence: What is noted.
        life: How long the note lasts; renew it before.
        figures: Gives the GPU's newest figures, at once.
    """

    def __init__(
        self,
        client: Redis,
        worker: str,
        presence: WorkerInfo,
        life: timedelta,
        figures: Callable[[], GpuStats | None] = lambda: None,
    ) -> None:
        self._redis, self._key, self._life = client, f"{WORKER_PREFIX}{worker}", life
        self._presence, self._figures = presence, figures

    def renew(self) -> None:
        """Note it for a while longer."""
        presence = self._presence.model_copy(update={"figures": self._figures()})
        # Versions that know fewer fields refuse them, even at their defaults.
        note = presence.model_dump_json(exclude_defaults=True)
        with self._redis.pipeline() as pipe:
            pipe.set(self._key, note, px=self._life)
            pipe.sadd(WORKERS, self._key.removeprefix(WORKER_PREFIX))
            pipe.pexpire(WORKERS, self._life)
            pipe.execute()

    def quarantined(self, reason: str | None) -> None:
        """Note that the worker takes no messages, and why; or, with None, that it does again."""
        self._presence = self._presence.model_copy(update={"quarantined": reason})
        with contextlib.suppress(RedisError):  # the next renewal tells it
            self.renew()

    def forget(self) -> None:
        """Note that the worker is gone."""
        self._redis.delete(self._key)


def live_workers(client: Redis) -> dict[str, WorkerInfo]:
    """The workers that are there, by name."""
    names = sorted(cast("set[str]", client.smembers(WORKERS)))
    keys = [f"{WORKER_PREFIX}{name}" for name in names]
    values = cast("list[str | None]", client.mget(keys)) if keys else []
    found = dict(zip(names, values, strict=True))
    gone = [name for name, value in found.items() if value is None]
    if gone:
        client.srem(WORKERS, *gone)
    return {
        name: presence
        for name, value in found.items()
        if value is not None and (presence := _read(name, value)) is not None
    }


def newest_versions(client: Redis) -> dict[str, int]:
    """Queue to the newest version of the program that a live worker of it is of."""
    found: dict[str, int] = {}
    for worker in live_workers(client).values():
        for queue in worker.queues:
            found[queue] = max(worker.version, found.get(queue, 0))
    return found


def why_unserved(client: Redis, queue: str) -> str | None:
    """Why nobody takes from a queue, with what there is; None where a live worker serves it."""
    live = live_workers(client)
    at_work = {name: worker for name, worker in live.items() if worker.quarantined is None}
    served = {queue for worker in at_work.values() for queue in worker.queues}
    if queue in served:
        return None
    there = f"live workers serve {', '.join(sorted(served))}" if served else "no worker is live"
    out = [
        f"; {name} is quarantined: {worker.quarantined}"
        for name, worker in live.items()
        if worker.quarantined is not None and queue in worker.queues
    ]
    found = f"no live worker serves {queue}: {there}{''.join(out)}"
    return found + _REMEDIES.get(engine_of(queue), "")


def _read(name: str, note: str) -> WorkerInfo | None:
    try:
        return WorkerInfo.model_validate_json(note)
    except ValidationError:
        logger.warning("worker %s notes itself in a form of another version; left out", name)
        return None


def next_larger_class(
    client: Redis, memory_class: MemoryClass | None, engine: Engine = DIFFUSERS
) -> MemoryClass | None:
    """The smallest class above this one that a live worker with this engine has, if any."""
    if memory_class is None:
        return None
    live = live_workers(client).values()
    able = [it for it in live if it.quarantined is None and engine in it.engines]
    there = {worker.memory_class for worker in able}
    return min((it for it in there if it and it > memory_class), default=None)
