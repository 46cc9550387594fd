"""Where a job goes: the class that holds it, never below its type's floor."""

from dataclasses import dataclass

from routing.classes import MemoryClass, smallest_class_holding
from routing.engines import DIFFUSERS, Engine
from routing.estimate import Estimate
from routing.queues import gpu_queue
from routing.requirements import FLOOR_CLASS, TrainingType, system_memory_gb


class DoesNotFitError(ValueError):
    """No memory class holds the job."""

    def __init__(self, needed_gib: float) -> None:
        largest = max(MemoryClass)
        self.needed_gib = needed_gib
        super().__init__(
            f"the job needs about {needed_gib:.1f} GiB of GPU memory and the largest class, "
            f"{largest}, is sure to have {largest.floor_gib:.1f} GiB"
        )


@dataclass(frozen=True)
class Route:
    """A job's class and the queue of each kind of stage.

    Attributes:
        memory_class: The class of its GPU.
        estimate: Of its GPU memory.
        reason: Why that class.
        system_memory_gb: The system memory that its machine should have.
        engine: What trains it; a worker needs to have it.
    """

    memory_class: MemoryClass
    estimate: Estimate
    reason: str
    system_memory_gb: int
    engine: Engine = DIFFUSERS

    @property
    def gpu_queue(self) -> str:
        """The queue of the stages that need the GPU."""
        return gpu_queue(self.memory_class, self.engine)

    def document(self) -> dict[str, object]:
        """The route for programs."""
        return {
            "queue": self.gpu_queue,
            "memory_class": str(self.memory_class),
            "engine": self.engine,
            "reason": self.reason,
            "needed_gib": round(self.estimate.needed_gib, 2),
            "parts_gib": {part: round(gib, 2) for part, gib in self.estimate.parts().items()},
            "system_memory_gb": self.system_memory_gb,
        }


def route(training_type: TrainingType, estimate: Estimate, engine: Engine = DIFFUSERS) -> Route:
    """The route of a job of this type with this estimate, trained by this engine.

    Raises:
        DoesNotFitError: No class holds the estimate.
    """
    floor = FLOOR_CLASS[training_type]
    holding = smallest_class_holding(estimate.needed_gib)
    if holding is None:
        raise DoesNotFitError(estimate.needed_gib)
    needed = f"the estimate of {estimate.needed_gib:.1f} GiB"
    reason = f"{training_type} never runs below {floor}; {needed} fits there"
    if holding > floor:
        reason = f"{needed} needs class {holding}"
    if engine != DIFFUSERS:
        reason = f"{reason}; the engine {engine} trains it"
    memory_gb = system_memory_gb(training_type)
    return Route(max(floor, holding), estimate, reason, memory_gb, engine)
