"""Warnings about a run's numbers: learning rates, and intervals that depend on its length.

The length of a run that is given in epochs is known once its dataset is counted. Until then the
checks that need it are put off: ``prepare`` and ``submit --dry-run`` make them, in the same words.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tasks.jobs.pipeline import PipelineConfig

# Long finetunes have 100,000 steps.
_MAX_STEPS = 1_000_000


class Trained(Enum):
    """What kind of weights a run trains."""

    LORA = "matrices that begin near zero"
    WEIGHTS = "the base model's own weights"
    EMBEDDINGS = "single vectors, which no other weights depend on"


class _Rates(NamedTuple):
    """Learning rates that may be meant: about ten times below and above what is usual."""

    lowest: float
    highest: float
    hint: str = ""


# Its author advises 1, and 0.1 to 3 for experiments.
_PRODIGY = _Rates(
    0.1, 3, "; Prodigy's rate is a factor on the step size that it finds, usually 1: leave it out"
)
_RELATIVE = "; Adafactor's rate is relative to the size of the weights"
_ADAFACTOR = {
    Trained.LORA: _Rates(1e-3, 0.3, f"{_RELATIVE}, usually 0.01"),
    Trained.EMBEDDINGS: _Rates(1e-3, 0.3, f"{_RELATIVE}, usually 0.01"),
    Trained.WEIGHTS: _Rates(1e-6, 1e-2, f"{_RELATIVE}, usually 0.0001"),
}
_ADAMW = {
    Trained.LORA: _Rates(1e-6, 5e-3),
    Trained.EMBEDDINGS: _Rates(1e-5, 0.1),
    Trained.WEIGHTS: _Rates(1e-8, 5e-4),
}
_ADAMW_TEXT_ENCODER_LORA = _Rates(1e-7, 2e-3)


def rate_warnings(config: "PipelineConfig") -> Iterator[str]:
    """Yield the learning rates that are far off for their optimizer, such as another one's."""
    models = defaultdict(list)
    for model, rate in config.learning_rates().items():
        models[rate, _rates(config, model)].append(model)
    for (rate, rates), names in models.items():
        if rates.lowest <= rate <= rates.highest:
            continue
        is_low = rate < rates.lowest
        yield (
            f"the learning rate of {' and '.join(names)} ({rate:g}) is far "
            f"{'below' if is_low else 'above'} what suits {config.optimizer.optimizer_type} "
            f"({rates.lowest:g} to {rates.highest:g}): "
            f"{'it hardly trains' if is_low else 'the run likely diverges'}{rates.hint}"
        )


def _rates(config: "PipelineConfig", model: str) -> _Rates:
    match config.optimizer.optimizer_type:
        case "Prodigy":
            return _PRODIGY
        case "Adafactor":
            return _ADAFACTOR[config.trained]
    if config.trained is Trained.LORA and model.startswith("text_encoder"):
        return _ADAMW_TEXT_ENCODER_LORA
    return _ADAMW[config.trained]


@dataclass(frozen=True)
class _Length:
    """A number of steps, given as such or in epochs."""

    option: str
    value: int
    steps: int

    def __str__(self) -> str:
        """Return the option with its value, as its author wrote it."""
        counted = f"; in steps: {self.steps:,}" if self.option.endswith("_epochs") else ""
        return f"{self.option} ({self.value}{counted})"


def schedule_warnings(
    config: "PipelineConfig", sizes: Collection[int] | None = None
) -> Iterator[str]:
    """Yield the intervals that do not suit the length of the run.

    Args:
        config: The run.
        sizes: The number of images of each training size, those of a smaller part repeated; None
            if they are not counted yet.
    """
    run = _length(config, "max_train", sizes)
    if run is not None:
        warmup = config.lr_warmup_steps
        if config.lr_scheduler != "constant" and warmup >= run.steps:
            yield (
                f"lr_warmup_steps ({warmup}) is not below {run}: the learning rate never gets to "
                "its full value"
            )
        if run.steps > _MAX_STEPS:
            yield f"{run} is over {_MAX_STEPS:,} steps, more than any run needs; check the number"
        save = _length(config, "save_every_n", sizes)
        if save is not None and save.steps > run.steps:
            yield f"{save} is above {run}: only the end of the run is saved"
        validate = _length(config, "validate_every_n", sizes)
        if config.validation_prompts and validate is not None and validate.steps > run.steps:
            when = " after the start" if config.validate_at_start else ""
            yield f"{validate} is above {run}: no validation images are made{when}"
    if sizes is None:
        return
    batches, together = config.batches_per_epoch(sizes), config.gradient_accumulation_steps
    if batches < together:
        yield (
            f"gradient_accumulation_steps ({together}) is above the number of batches of an epoch "
            f"({batches}): each step has these only"
        )


def count_warnings(config: "PipelineConfig", sizes: Collection[int]) -> list[str]:
    """Return the warnings that were put off until the dataset's images are counted."""
    known = set(schedule_warnings(config))
    return [warning for warning in schedule_warnings(config, sizes) if warning not in known]


def _length(config: "PipelineConfig", name: str, sizes: Collection[int] | None) -> _Length | None:
    """Return an interval in steps; None if it is not given, or in epochs that are not counted."""
    steps: int | None = getattr(config, f"{name}_steps")
    if steps is not None:
        return _Length(f"{name}_steps", steps, steps)
    epochs: int | None = getattr(config, f"{name}_epochs")
    if epochs is None or sizes is None:
        return None
    return _Length(f"{name}_epochs", epochs, epochs * config.steps_per_epoch(sizes))
