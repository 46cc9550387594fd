"""What each training type asks of a machine before its options are looked at."""

from enum import StrEnum

from routing.classes import MemoryClass


class TrainingType(StrEnum):
    """The training types, spelled as invoke-training spells them."""

    SDXL_LORA = "SDXL_LORA"
    SDXL_TEXTUAL_INVERSION = "SDXL_TEXTUAL_INVERSION"
    SDXL_FINETUNE = "SDXL_FINETUNE"
    FLUX_LORA = "FLUX_LORA"


# The least class a type is ever sent to. FLUX stays at 40 GB or more whatever its options say:
# its bf16 weights alone take 23.8 GB. An estimate can raise a job's class, nothing lowers it.
FLOOR_CLASS = {
    TrainingType.SDXL_LORA: MemoryClass.GB8,
    TrainingType.SDXL_TEXTUAL_INVERSION: MemoryClass.GB8,
    TrainingType.SDXL_FINETUNE: MemoryClass.GB24,
    TrainingType.FLUX_LORA: MemoryClass.GB40,
}

RESOURCE_REQUIREMENTS = {
    "SDXL_LORA": {"gpu_memory": "8GB", "system_memory": "16GB"},
    "SDXL_TEXTUAL_INVERSION": {"gpu_memory": "6GB", "system_memory": "12GB"},
    "SDXL_FINETUNE": {"gpu_memory": "24GB", "system_memory": "32GB"},
    "FLUX_LORA": {"gpu_memory": "40GB", "system_memory": "64GB"},
}
"""What operators should provide for each type, as published for people to read."""


def system_memory_gb(training_type: TrainingType) -> int:
    """The system memory, in GB, of a machine that trains this type."""
    return int(RESOURCE_REQUIREMENTS[training_type]["system_memory"].removesuffix("GB"))


def types_on(memory_class: MemoryClass) -> list[TrainingType]:
    """The types whose jobs a worker that serves up to this class may get."""
    return [kind for kind in TrainingType if FLOOR_CLASS[kind] <= memory_class]
