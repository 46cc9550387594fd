"""Queue names, and the order in which a worker serves them."""

from collections.abc import Collection

from routing.classes import MemoryClass
from routing.engines import DIFFUSERS, EXTRA_ENGINES, Engine

CPU_QUEUE = "cpu"


def gpu_queue(memory_class: MemoryClass, engine: Engine = DIFFUSERS) -> str:
    """The queue of the jobs that need a GPU of this class: ``gpu.40gb``.

    Those of an engine that not every worker has are in queues of their own, which no other worker
    serves: ``gpu.40gb.invoke-training``.
    """
    queue = f"gpu.{memory_class}"
    return queue if engine == DIFFUSERS else f"{queue}.{engine}"


GPU_QUEUES = tuple(gpu_queue(c) for c in MemoryClass)
ENGINE_QUEUES = tuple(gpu_queue(c, engine) for engine in EXTRA_ENGINES for c in MemoryClass)
ALL_QUEUES = (CPU_QUEUE, *GPU_QUEUES, *ENGINE_QUEUES)
_GPU_STAGES = frozenset({"cache", "train"})


def stage_queue(stage: str, gpu_queue_name: str) -> str:
    """The queue of a job's stage, given the queue of its GPU stages."""
    return gpu_queue_name if stage in _GPU_STAGES else CPU_QUEUE


def engine_of(queue: str) -> Engine:
    """The engine that a worker needs to serve a queue."""
    return next((engine for engine in EXTRA_ENGINES if queue.endswith(f".{engine}")), DIFFUSERS)


def served_queues(
    memory_class: MemoryClass, *, strict: bool = False, engines: Collection[Engine] = ()
) -> tuple[str, ...]:
    """The queues a GPU of this class serves, first served first.

    Its own class comes first, then smaller ones, so that a big card never starves the jobs only
    it can hold and never stands idle beside smaller jobs either. For the same reason the jobs of
    an engine that it has, and others may not, come before others of their class.

    Args:
        memory_class: The class of the worker's GPU.
        strict: Serve the own class only.
        engines: What the worker has beside the engine that all have.
    """
    classes = [c for c in sorted(MemoryClass, reverse=True) if c <= memory_class]
    extra = [engine for engine in EXTRA_ENGINES if engine in engines]
    return tuple(
        gpu_queue(c, engine)
        for c in (classes[:1] if strict else classes)
        for engine in (*extra, DIFFUSERS)
    )
