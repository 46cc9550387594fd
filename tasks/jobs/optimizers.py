"""Optimizer configs: invoke-training's, with its names and defaults, and Adafactor."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from tasks.jobs.field_metadata import ActsIf
from tasks.strict_model import NO_BOOLEAN, Decay, NonNegativeFloat, PositiveFloat, StrictModel

IF_WARMING_UP = ActsIf(
    lambda config: config.lr_scheduler != "constant",
    "lr_scheduler 'constant' neither rises nor falls",
)
LearningRate = Annotated[
    PositiveFloat,
    ActsIf(
        lambda config: config.optimizer.learning_rate in config.learning_rates().values(),
        "every trained model has its own learning rate, given or by default; null leaves this one",
    ),
]


class AdamOptimizerConfig(StrictModel):
    """AdamW (Loshchilov & Hutter, 2019)."""

    optimizer_type: Literal["AdamW"] = "AdamW"
    """Selects this optimizer."""

    learning_rate: LearningRate = 1e-4
    """The learning rate of each model whose own learning rate is null."""

    beta1: Decay = 0.9
    """Decay of the mean of the gradients."""

    beta2: Decay = 0.999
    """Decay of the mean of their squares."""

    weight_decay: NonNegativeFloat = 0.01
    """Decoupled decay of the weights at each step, times the learning rate."""

    epsilon: PositiveFloat = 1e-8
    """Added to the denominator."""

    use_8bit: StrictBool = False
    """Keep the optimizer's state in 8 bits (Dettmers et al., 2022), by bitsandbytes. The state of
    tensors below 4096 numbers stays in 32 bits."""

    @property
    def state_bytes(self) -> float:
        """Bytes of state for each trained weight: two moments, in 8 bits with a scale for 256."""
        return 2 + 2 * 4 / 256 if self.use_8bit else 8


class ProdigyOptimizerConfig(StrictModel):
    """Prodigy (Mishchenko & Defazio, 2023), which finds its own step size."""

    optimizer_type: Literal["Prodigy"] = "Prodigy"
    """Selects this optimizer."""

    learning_rate: LearningRate = 1.0
    """A factor on the step size that Prodigy finds, for each model whose own learning rate is null
    or left out. Prodigy does not make up for it: far below 1, it hardly trains."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights at each step, times the rate that Prodigy found."""

    use_bias_correction: StrictBool = False
    """Adam's bias correction."""

    safeguard_warmup: Annotated[StrictBool, IF_WARMING_UP] = False
    """Keep the low rates of the warmup steps out of the step-size estimate."""

    @property
    def state_bytes(self) -> float:
        """Bytes of state for each trained weight: two moments, its start, a sum of gradients."""
        return 16


class AdafactorOptimizerConfig(StrictModel):
    """Adafactor (Shazeer & Stern, 2018): hardly any state, for finetunes on small GPUs."""

    optimizer_type: Literal["Adafactor"] = "Adafactor"
    """Selects this optimizer. invoke-training does not have it."""

    learning_rate: LearningRate = 1e-2
    """The learning rate of each model whose own learning rate is null. It is relative: a step moves
    a weight matrix by this share of its root mean square, 1 / sqrt(step) at most."""

    beta2_decay: Annotated[float, Field(lt=0, allow_inf_nan=False), NO_BOOLEAN] = -0.8
    """The mean of squared gradients decays by 1 - step^beta2_decay."""

    clipping_threshold: Annotated[float, Field(ge=1, allow_inf_nan=False), NO_BOOLEAN] = 1.0
    """The maximum root mean square of an update, before it is multiplied by the rate."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of the weights at each step, times the learning rate."""

    @property
    def state_bytes(self) -> float:
        """Bytes of state for each trained weight of SDXL's UNet: sums of rows and columns."""
        return 0.38


OptimizerConfig = Annotated[
    AdamOptimizerConfig | ProdigyOptimizerConfig | AdafactorOptimizerConfig,
    Field(discriminator="optimizer_type"),
]
