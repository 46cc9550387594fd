"""Optimizer configs, with invoke-training's names and defaults."""

from typing import Literal

from pydantic import field_validator

from tasks.jobs.base import Decay, NonNegativeFloat, PositiveFloat, StrictModel


class AdamOptimizerConfig(StrictModel):
    """AdamW (Loshchilov & Hutter, 2019)."""

    optimizer_type: Literal["AdamW"] = "AdamW"
    """Selects this optimizer."""

    learning_rate: PositiveFloat = 1e-4
    """The rate where the model's own learning rate is null."""

    beta1: Decay = 0.9
    """Decay of the mean of the gradients."""

    beta2: Decay = 0.999
    """Decay of the mean of their squares."""

    weight_decay: NonNegativeFloat = 0.01
    """Decoupled decay of the weights at each step, times the learning rate."""

    epsilon: PositiveFloat = 1e-8
    """Added to the denominator."""

    use_8bit: bool = False
    """Keep the optimizer's state in 8 bits. Not built yet: refused."""

    @field_validator("use_8bit")
    @classmethod
    def _refuse_8bit(cls, value: bool) -> bool:
        if value:
            raise ValueError("8-bit AdamW is not built yet; leave it false")
        return value


class ProdigyOptimizerConfig(StrictModel):
    """Prodigy (Mishchenko & Defazio, 2023), which finds its own step size. Not built yet."""

    optimizer_type: Literal["Prodigy"] = "Prodigy"
    """Selects this optimizer."""

    learning_rate: PositiveFloat = 1.0
    """A factor on the step size that Prodigy finds."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights."""

    use_bias_correction: bool = False
    """Adam's bias correction."""

    safeguard_warmup: bool = False
    """Keep warmup steps out of the step-size estimate."""

    @field_validator("optimizer_type")
    @classmethod
    def _refuse(cls, value: str) -> str:
        raise ValueError("Prodigy is not built yet; use optimizer_type AdamW")
