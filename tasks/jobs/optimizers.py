"""Optimizer configs: invoke-training's, with its names and defaults, and Adafactor."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.strict_model import Decay, NonNegativeFloat, PositiveFloat, StrictModel


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
    """Keep the optimizer's state in 8 bits (Dettmers et al., 2022), by bitsandbytes. Weights of
    under 4096 numbers keep theirs in 32."""

    @property
    def state_bytes(self) -> float:
        """Bytes kept for each trained weight: two moments."""
        return 2 if self.use_8bit else 8


class ProdigyOptimizerConfig(StrictModel):
    """Prodigy (Mishchenko & Defazio, 2023), which finds its own step size."""

    optimizer_type: Literal["Prodigy"] = "Prodigy"
    """Selects this optimizer."""

    learning_rate: PositiveFloat = 1.0
    """A factor on the step size that Prodigy finds, where the model's own learning rate is null
    or left out. Prodigy does not make up for it: far below 1, it hardly trains."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights at each step, times the rate that Prodigy found."""

    use_bias_correction: bool = False
    """Adam's bias correction."""

    safeguard_warmup: bool = False
    """Keep the low rates of the warmup steps out of the step-size estimate."""

    @property
    def state_bytes(self) -> float:
        """Bytes kept for each trained weight: AdamW's two, its start, and a sum of gradients."""
        return 16


class AdafactorOptimizerConfig(StrictModel):
    """Adafactor (Shazeer & Stern, 2018): hardly any state, for finetunes on small cards."""

    optimizer_type: Literal["Adafactor"] = "Adafactor"
    """Selects this optimizer. invoke-training has no such one."""

    learning_rate: PositiveFloat = 1e-2
    """The rate where the model's own learning rate is null. It is relative: a step moves a weight
    matrix by this share of its root mean square, 1 / sqrt(step) at most."""

    beta2_decay: Annotated[float, Field(lt=0, allow_inf_nan=False)] = -0.8
    """The mean of squared gradients decays by 1 - step^beta2_decay."""

    clipping_threshold: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """The greatest root mean square of an update before the rate."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights at each step, times the learning rate."""

    @property
    def state_bytes(self) -> float:
        """Bytes kept for each trained weight: a row's and a column's sums, next to nothing."""
        return 0


OptimizerConfig = Annotated[
    AdamOptimizerConfig | ProdigyOptimizerConfig | AdafactorOptimizerConfig,
    Field(discriminator="optimizer_type"),
]
