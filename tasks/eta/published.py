"""Published speeds: how long a training step takes on cards that this fleet has not run yet.

These are other trainers' figures, by type and card. They are shown with their source, only until
the fleet has runs of its own, and never for emulated GPUs.
"""

from dataclasses import dataclass

from routing.classes import MemoryClass
from routing.policy import TrainingType
from tasks.eta.history import WorkloadKey


@dataclass(frozen=True)
class PublishedSpeed:
    """A published time of a training step.

    Attributes:
        step_s: Seconds of a step.
        size: Width and height of its images; None if the source does not name them.
        source: The card, and who published it.
    """

    step_s: float
    size: tuple[int, int] | None
    source: str

    def seconds_of(self, key: WorkloadKey) -> float:
        """Return the seconds of a step of a workload, scaled by its samples and pixels."""
        if self.size is None or key.size is None:
            return self.step_s
        pixels = key.size[0] * key.size[1] / (self.size[0] * self.size[1])
        return self.step_s * pixels * key.samples


# All at one sample a step. A40 mixes 512, 768 and 1024 px, whose mean is that of 796 px.
_SPEEDS: dict[TrainingType, dict[MemoryClass, PublishedSpeed]] = {
    TrainingType.FLUX_LORA: {
        MemoryClass.GB40: PublishedSpeed(
            6.5, (796, 796), "published for an A40 (ai-toolkit, issue 145)"
        ),
        MemoryClass.GB80: PublishedSpeed(
            1.71, (512, 768), "published for an H100 in fp8 (Hugging Face, FLUX QLoRA)"
        ),
    },
    TrainingType.SDXL_LORA: {
        MemoryClass.GB8: PublishedSpeed(
            2.4, (1024, 1024), "published for an RTX 3060 (kohya_ss, issue 1288)"
        ),
        MemoryClass.GB24: PublishedSpeed(
            1.2, (1024, 1024), "published for an RTX 3090 (kohya_ss, issue 1730)"
        ),
        MemoryClass.GB40: PublishedSpeed(
            0.585, (1024, 1024), "published for an L40S (SimpleTuner's documentation)"
        ),
        MemoryClass.GB80: PublishedSpeed(
            0.606, (1024, 1024), "published for an H100 (SimpleTuner's documentation)"
        ),
    },
}
_NO_FIGURE = PublishedSpeed(7.2, None, "a rule of thumb: 1 to 4 hours for 1000 steps")
"""The geometric mean of what people expect of one GPU, for types without a published figure."""


def published_speed(key: WorkloadKey) -> PublishedSpeed | None:
    """Return the published speed of a workload's type on its class or the next smaller one.

    None is for stages that are not published: all but training.
    """
    if key.stage != "train" or key.memory_class is None:
        return None
    speeds = _SPEEDS.get(TrainingType(key.type), {})
    held = [each for each in speeds if each <= key.memory_class]
    return speeds[max(held)] if held else _NO_FIGURE
