"""The registry of live workers: each renews its heartbeat in Redis while it lives."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.resources import files
from typing import cast

from pydantic import ConfigDict, ValidationError
from redis import Redis, RedisError

from routing.classes import MemoryClass
from routing.queues import DIFFUSERS, INVOKE, Engine, engine_of
from tasks.clock import MAX_CLOCK_OFFSET_S, clock_offset_s
from tasks.redis_script import Key, ScriptFolder
from tasks.state.keys import WORKER_PREFIX, WORKERS
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

_REMEDIES: dict[Engine, str] = {
    INVOKE: "; set TRAINING_INVOKE_PYTHON on a GPU worker, and see 'training-worker engines' there"
}

_lua = ScriptFolder(files("tasks.state") / "lua", {})


class GpuStats(StrictModel):
    """What the driver reported of a GPU a moment ago.

    Attributes:
        memory_bytes: All of its memory.
        used_bytes: The memory in use.
        utilization: The share of the time that it computes, 0 to 1; None if not reported.
        temperature_c: In degrees Celsius; None if not reported.
    """

    memory_bytes: int
    used_bytes: int
    utilization: float | None = None
    temperature_c: int | None = None


class WorkerInfo(StrictModel):
    """A worker.

    Attributes:
        version: The version of job records that its program writes.
        release: The version of its program, such as 0.1.0; empty from older ones.
        queues: The queues it serves, first served first.
        memory_class: The class of its GPU; None on the CPU queue, as are all GPU fields.
        gpu_uuid: The GPU that it is pinned to.
        gpu_name: The product's name.
        gpu_mib: The GPU's memory; 0 if it is emulated.
        quarantined: Why the worker takes no messages now; None if it does.
        engines: The engines it can train with.
        gpu_stats: The GPU's newest figures, if the driver reports any.
        instance: Its process; another one of the same name has another. Older versions
            write none.
        clock_offset_s: How many seconds its machine's clock is ahead of the broker's.
    """

    # Other versions of the program may write more fields.
    model_config = ConfigDict(extra="ignore")

    version: int = 1
    release: str = ""
    queues: tuple[str, ...]
    memory_class: MemoryClass | None
    gpu_uuid: str | None = None
    gpu_name: str | None = None
    gpu_mib: int = 0
    quarantined: str | None = None
    engines: tuple[Engine, ...] = (DIFFUSERS,)
    gpu_stats: GpuStats | None = None
    instance: str = "unknown"
    clock_offset_s: float = 0.0

    @property
    def is_emulated(self) -> bool:
        """Whether its GPU is emulated on the CPU."""
        return self.memory_class is not None and not self.gpu_mib

    @property
    def has_wrong_clock(self) -> bool:
        """Whether its clock is off by more than people should overlook."""
        return abs(self.clock_offset_s) > MAX_CLOCK_OFFSET_S


class WorkerHeartbeat:
    """A worker's entry in the registry.

    Args:
        client: A connection to the broker.
        worker: The worker's name.
        info: The entry.
        ttl: How long it is valid; renew it before.
        gpu_stats: Returns the GPU's newest figures, without delay.
    """

    def __init__(
        self,
        client: Redis,
        worker: str,
        info: WorkerInfo,
        ttl: timedelta,
        gpu_stats: Callable[[], GpuStats | None] = lambda: None,
    ) -> None:
        self._redis, self._worker, self._ttl = client, worker, ttl
        self._info, self._gpu_stats = info, gpu_stats

    def renew(self, *, replaces: str = "") -> str | None:
        """Write the entry, valid for another ``ttl``, unless another process has the name.

        Args:
            replaces: The instance of a process that is gone.

        Returns:
            None; or the instance of the other process, and nothing was written.
        """
        offset_s = round(clock_offset_s(self._redis), 1)
        info = self._info.model_copy(
            update={"gpu_stats": self._gpu_stats(), "clock_offset_s": offset_s}
        )
        other = register_worker(
            self._redis,
            entry_key=f"{WORKER_PREFIX}{self._worker}",
            workers=WORKERS,
            worker=self._worker,
            instance=info.instance,
            replaces=replaces,
            # Versions that know fewer fields refuse unknown ones, even at their defaults.
            info=info.model_dump_json(exclude_defaults=True),
            ttl_ms=self._ttl // timedelta(milliseconds=1),
        )
        return other or None

    def set_quarantine(self, reason: str | None) -> None:
        """Report why the worker takes no messages; with None, that it takes them again."""
        self._info = self._info.model_copy(update={"quarantined": reason})
        with contextlib.suppress(RedisError):  # the next renewal reports it
            self.renew()

    def deregister(self) -> None:
        """Delete the entry, if it is this process's."""
        key = f"{WORKER_PREFIX}{self._worker}"
        deregister_worker(self._redis, entry_key=key, instance=self._info.instance)


@_lua.script
def register_worker(
    *,
    entry_key: Key,
    workers: Key,
    worker: str,
    instance: str,
    replaces: str,
    info: str,
    ttl_ms: int,
) -> str:
    """Write a worker's entry unless another process has its name."""
    raise NotImplementedError


@_lua.script
def deregister_worker(*, entry_key: Key, instance: str) -> None:
    """Delete a worker's entry if it is this process's."""
    raise NotImplementedError


def live_workers(client: Redis) -> dict[str, WorkerInfo]:
    """Return the live workers by name."""
    names = sorted(cast("set[str]", client.smembers(WORKERS)))
    keys = [f"{WORKER_PREFIX}{name}" for name in names]
    values = cast("list[str | None]", client.mget(keys)) if keys else []
    entries = dict(zip(names, values, strict=True))
    gone = [name for name, text in entries.items() if text is None]
    if gone:
        client.srem(WORKERS, *gone)
    return {
        name: info
        for name, text in entries.items()
        if text is not None and (info := _parse(name, text)) is not None
    }


def emulated_classes(workers: Mapping[str, WorkerInfo]) -> frozenset[MemoryClass]:
    """Return the classes of which the live workers have emulated GPUs only."""
    emulated, real = (
        {
            worker.memory_class
            for worker in workers.values()
            if worker.memory_class is not None and worker.is_emulated is is_emulated
        }
        for is_emulated in (True, False)
    )
    return frozenset(emulated - real)


def newest_versions(client: Redis) -> dict[str, int]:
    """Return the newest version among the live workers of each queue."""
    versions: dict[str, int] = {}
    for worker in live_workers(client).values():
        for queue in worker.queues:
            versions[queue] = max(worker.version, versions.get(queue, 0))
    return versions


def why_unserved(client: Redis, queue: str) -> str | None:
    """Return why no worker takes from a queue; None if a live worker serves it."""
    live = live_workers(client)
    served = {q for worker in live.values() if worker.quarantined is None for q in worker.queues}
    if queue in served:
        return None
    others = f"live workers serve {', '.join(sorted(served))}" if served else "none takes jobs"
    quarantined = "".join(
        f"; {name} is quarantined: {worker.quarantined}"
        for name, worker in live.items()
        if worker.quarantined is not None and queue in worker.queues
    )
    remedy = _REMEDIES.get(engine_of(queue), "")
    return f"no live worker serves {queue}: {others}{quarantined}{remedy}"


def next_larger_class(
    client: Redis, memory_class: MemoryClass | None, engine: Engine = DIFFUSERS
) -> MemoryClass | None:
    """Return the smallest larger class of which a healthy worker with this engine is live."""
    if memory_class is None:
        return None
    workers = live_workers(client).values()
    healthy = [
        worker for worker in workers if worker.quarantined is None and engine in worker.engines
    ]
    classes = {worker.memory_class for worker in healthy}
    return min(
        (candidate for candidate in classes if candidate and candidate > memory_class),
        default=None,
    )


def _parse(name: str, text: str) -> WorkerInfo | None:
    try:
        return WorkerInfo.model_validate_json(text)
    except ValidationError:
        logger.warning("skipped worker %s: cannot read the heartbeat of another version", name)
        return None
