"""Queue names by memory class and engine, and the order in which a worker serves them."""

from collections.abc import Collection
from typing import Literal

from routing.classes import MemoryClass

Engine = Literal["diffusers", "invoke-training"]
"""A library that trains jobs."""
DIFFUSERS: Engine = "diffusers"
INVOKE: Engine = "invoke-training"
EXTRA_ENGINES: tuple[Engine, ...] = (INVOKE,)
"""The engines that not every worker has: their jobs have their own queues."""

CPU_QUEUE = "cpu"
SUBMIT_QUEUE = "submit"
"""The queue of ``training.submit``, so that a burst of submits delays no stage."""

_GPU_STAGES = frozenset({"cache", "train"})


def gpu_queue(memory_class: MemoryClass, engine: Engine = DIFFUSERS) -> str:
    """Return the queue of the jobs that need a GPU of this class: ``gpu.40gb``.

    Jobs of an extra engine have their own queue, which workers without it do not serve:
    ``gpu.40gb.invoke-training``.
    """
    queue = f"gpu.{memory_class}"
    return queue if engine == DIFFUSERS else f"{queue}.{engine}"


GPU_QUEUES = tuple(gpu_queue(c) for c in MemoryClass)
ENGINE_QUEUES = tuple(gpu_queue(c, engine) for engine in EXTRA_ENGINES for c in MemoryClass)
STAGE_QUEUES = (CPU_QUEUE, *GPU_QUEUES, *ENGINE_QUEUES)
ALL_QUEUES = (*STAGE_QUEUES, SUBMIT_QUEUE)


def stage_queue(stage: str, gpu_queue_name: str) -> str:
    """Return the queue of a job's stage, given the queue of its GPU stages."""
    return gpu_queue_name if stage in _GPU_STAGES else CPU_QUEUE


def with_submit_queue(queues: tuple[str, ...]) -> tuple[str, ...]:
    """Return the queues that a worker consumes: a worker of ``cpu`` also serves ``submit``."""
    return (*queues, SUBMIT_QUEUE) if CPU_QUEUE in queues and SUBMIT_QUEUE not in queues else queues


def class_of(queue: str) -> MemoryClass | None:
    """Return the memory class of a GPU queue."""
    engine = engine_of(queue)
    return next((c for c in MemoryClass if gpu_queue(c, engine) == queue), None)


def engine_of(queue: str) -> Engine:
    """Return the engine that a worker needs to serve a queue."""
    return next((engine for engine in EXTRA_ENGINES if queue.endswith(f".{engine}")), DIFFUSERS)


def served_queues(
    memory_class: MemoryClass, *, strict: bool = False, engines: Collection[Engine] = ()
) -> tuple[str, ...]:
    """Return the queues that a worker with a GPU of this class serves, first served first.

    Its own class comes first, then smaller ones: a large card neither starves the jobs that only it
    can hold, nor is idle while smaller jobs wait. For the same reason, the jobs of an extra engine
    precede other jobs of their class.

    Args:
        memory_class: The class of the worker's GPU.
        strict: Serve the own class only.
        engines: The extra engines of the worker.
    """
    classes = [c for c in sorted(MemoryClass, reverse=True) if c <= memory_class]
    extra = [engine for engine in EXTRA_ENGINES if engine in engines]
    return tuple(
        gpu_queue(c, engine)
        for c in (classes[:1] if strict else classes)
        for engine in (*extra, DIFFUSERS)
    )
