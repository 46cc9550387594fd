"""Routing: a job goes to the smallest class that holds it, never below its type's floor."""

from dataclasses import dataclass
from enum import StrEnum

from routing.classes import MemoryClass, smallest_class_holding
from routing.estimate import Estimate
from routing.queues import DIFFUSERS, Engine, gpu_queue


class TrainingType(StrEnum):
    """The training types, spelled as in invoke-training."""

    SDXL_LORA = "SDXL_LORA"
    SDXL_TEXTUAL_INVERSION = "SDXL_TEXTUAL_INVERSION"
    SDXL_FINETUNE = "SDXL_FINETUNE"
    FLUX_LORA = "FLUX_LORA"


# The smallest class that a type is ever sent to. FLUX needs 40 GB or more whatever its options are:
# its bf16 weights alone take 23.8 GB. An estimate can raise a job's class, and nothing lowers it.
FLOOR_CLASS = {
    TrainingType.SDXL_LORA: MemoryClass.GB8,
    TrainingType.SDXL_TEXTUAL_INVERSION: MemoryClass.GB8,
    TrainingType.SDXL_FINETUNE: MemoryClass.GB24,
    TrainingType.FLUX_LORA: MemoryClass.GB40,
}

AUTO_SHARE = 0.95
"""The share of a class's memory that gradient_checkpointing ``auto`` fills. Estimates are up to 5 %
too low: a larger share sends jobs out of memory."""

RESOURCE_REQUIREMENTS = {
    "SDXL_LORA": {"gpu_memory": "8GB", "system_memory": "16GB"},
    "SDXL_TEXTUAL_INVERSION": {"gpu_memory": "6GB", "system_memory": "12GB"},
    "SDXL_FINETUNE": {"gpu_memory": "24GB", "system_memory": "32GB"},
    "FLUX_LORA": {"gpu_memory": "40GB", "system_memory": "64GB"},
}
"""The published requirements of each type, for operators."""


class DoesNotFitError(ValueError):
    """No memory class holds the job."""

    def __init__(self, needed_gib: float) -> None:
        largest = max(MemoryClass)
        self.needed_gib = needed_gib
        super().__init__(
            f"the job needs about {needed_gib:.1f} GiB of GPU memory, and cards of the largest "
            f"class, {largest}, have at least {largest.floor_gib:.1f} GiB"
        )


@dataclass(frozen=True)
class Route:
    """The class and the queue of a job's GPU stages.

    Attributes:
        memory_class: The class of the GPU.
        estimate: The GPU memory that the job needs.
        reason: Why that class.
        system_memory_gb: The system memory that the machine should have.
        engine: The engine that trains the job; a worker needs to have it.
        checkpointed_blocks: The blocks of the denoiser that are recomputed.
        blocks: All its blocks.
    """

    memory_class: MemoryClass
    estimate: Estimate
    reason: str
    system_memory_gb: int
    engine: Engine = DIFFUSERS
    checkpointed_blocks: int = 0
    blocks: int = 0

    @property
    def gpu_queue(self) -> str:
        """The queue of the stages that need the GPU."""
        return gpu_queue(self.memory_class, self.engine)

    def document(self) -> dict[str, object]:
        """Return the route as JSON."""
        return {
            "queue": self.gpu_queue,
            "memory_class": str(self.memory_class),
            "engine": self.engine,
            "reason": self.reason,
            "needed_gib": round(self.estimate.needed_gib, 2),
            "parts_gib": {part: round(gib, 2) for part, gib in self.estimate.parts().items()},
            "system_memory_gb": self.system_memory_gb,
            "checkpointed_blocks": self.checkpointed_blocks,
            "blocks": self.blocks,
        }


def route(training_type: TrainingType, estimate: Estimate, engine: Engine = DIFFUSERS) -> Route:
    """Return the route of a job of this type with this estimate, trained by this engine.

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


def required_class(training_type: TrainingType, needed_gib: float) -> MemoryClass:
    """Return the smallest class that may run a job of this type that needs this much memory."""
    holding = smallest_class_holding(needed_gib) or max(MemoryClass)
    return max(FLOOR_CLASS[training_type], holding)


def system_memory_gb(training_type: TrainingType) -> int:
    """Return the system memory, in GB, of a machine that trains this type."""
    return int(RESOURCE_REQUIREMENTS[training_type]["system_memory"].removesuffix("GB"))


def types_on(memory_class: MemoryClass) -> list[TrainingType]:
    """Return the types whose jobs a worker that serves up to this class can get."""
    return [kind for kind in TrainingType if FLOOR_CLASS[kind] <= memory_class]
