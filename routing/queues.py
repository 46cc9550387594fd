"""Queue names, and the order in which a worker serves them."""

from routing.classes import MemoryClass

CPU_QUEUE = "cpu"


def gpu_queue(memory_class: MemoryClass) -> str:
    """The queue of the jobs that need a GPU of this class: ``gpu.40gb``."""
    return f"gpu.{memory_class}"


GPU_QUEUES = tuple(gpu_queue(c) for c in MemoryClass)
ALL_QUEUES = (CPU_QUEUE, *GPU_QUEUES)
_GPU_STAGES = frozenset({"cache", "train"})


def stage_queue(stage: str, gpu_queue_name: str) -> str:
    """The queue of a job's stage, given the queue of its GPU stages."""
    return gpu_queue_name if stage in _GPU_STAGES else CPU_QUEUE


def served_queues(memory_class: MemoryClass, *, strict: bool = False) -> tuple[str, ...]:
    """The queues a GPU of this class serves, first served first.

    Its own class comes first, then smaller ones, so that a big card never starves the jobs only
    it can hold and never stands idle beside smaller jobs either.

    Args:
        memory_class: The class of the worker's GPU.
        strict: Serve the own class only.
    """
    if strict:
        return (gpu_queue(memory_class),)
    return tuple(gpu_queue(c) for c in sorted(MemoryClass, reverse=True) if c <= memory_class)
