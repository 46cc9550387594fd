"""The optimizer of a run: made from its config, its state converted to tensors and back.

An optimizer keeps tensors and counts for each weight, and Prodigy a few numbers for all of them.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from tasks.jobs.optimizers import (
    AdafactorOptimizerConfig,
    AdamOptimizerConfig,
    OptimizerConfig,
    ProdigyOptimizerConfig,
)

Parameters = Mapping[str, torch.nn.Parameter]

# The numbers of prodigyopt 1.1 that a step reads from its parameter groups, or writes there.
_PRODIGY_NUMBERS = ("d", "d0", "d_max", "d_numerator", "d_denom", "d_hat", "k")


def model_of(name: str) -> str:
    """Return the model of a weight: ``unet`` of ``unet.conv_in.lora_A``."""
    return name.partition(".")[0]


def new_optimizer(
    parameters: Parameters, settings: OptimizerConfig, rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Make the config's optimizer of these weights, before its first step.

    Args:
        parameters: The weights by name, which begins with their model's.
        settings: The optimizer's settings.
        rates: Base learning rate by model; each model is a parameter group.
    """
    groups = [
        {"params": [p for name, p in parameters.items() if model_of(name) == model], "lr": rate}
        for model, rate in rates.items()
    ]
    match settings:
        case AdamOptimizerConfig():
            return _adam(groups, settings)
        case ProdigyOptimizerConfig():
            return _prodigy(groups, settings)
        case AdafactorOptimizerConfig():
            return torch.optim.Adafactor(
                groups,
                beta2_decay=settings.beta2_decay,
                d=settings.clipping_threshold,
                weight_decay=settings.weight_decay,
            )


def set_rates(optimizer: torch.optim.Optimizer, factor: float, rates: Mapping[str, float]) -> float:
    """Set each group's learning rate to ``factor`` times its base rate.

    Returns:
        The rate of the first group's next step: with Prodigy, times the step size that it found.
    """
    for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
        group["lr"] = rate * factor
    first = optimizer.param_groups[0]
    return float(first["lr"]) * float(first.get("d", 1.0))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Parameters
) -> dict[str, torch.Tensor]:
    """Return all that a step changes, as ``optimizer/<moment>/<weight>`` and ``group/<number>``.

    A Python number becomes a scalar of float64 or int64, which hold it exactly.
    """
    # Prodigy keeps the same numbers in all groups.
    first = optimizer.param_groups[0]
    tensors = {f"group/{name}": _tensor(first[name]) for name in _PRODIGY_NUMBERS if name in first}
    for name, parameter in parameters.items():
        for moment, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{moment}/{name}"] = _tensor(value)
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore what ``optimizer_tensors`` returned; other tensors are ignored.

    Raises:
        KeyError: A tensor is of another weight, or one of Prodigy's numbers is missing.
    """
    moments: dict[str, list[str]] = {name: [] for name in parameters}
    for key in tensors:
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            moment, _, name = rest.partition("/")
            moments[name].append(moment)
    # One weight after the other: the tensors may be read from a file as they are asked for.
    for name, parameter in parameters.items():
        restored: dict[str, Any] = {}
        for moment in moments[name]:
            tensor = tensors[f"optimizer/{moment}/{name}"]
            if moment != "step" or isinstance(optimizer, torch.optim.AdamW):
                restored[moment] = tensor.to(parameter.device)
            else:
                # Adafactor counts in a tensor on the CPU, Prodigy and bitsandbytes in a number.
                is_adafactor = isinstance(optimizer, torch.optim.Adafactor)
                restored[moment] = tensor if is_adafactor else tensor.item()
        if restored:
            optimizer.state[parameter] = restored
    for group in optimizer.param_groups:
        for name in _PRODIGY_NUMBERS:
            # The first step adds d_denom and d_hat; a state before it lacks only these.
            if name in group or f"group/{name}" in tensors:
                group[name] = tensors[f"group/{name}"].item()


class WeightAverage(EMAModel):
    """The moving average of weights: diffusers', in one pass and without other memory."""

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Move the average towards the weights."""
        self.optimization_step += 1
        share = 1 - self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, list(parameters), share)


def _adam(groups: list[dict[str, Any]], settings: AdamOptimizerConfig) -> torch.optim.Optimizer:
    values: dict[str, Any] = {
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    if not settings.use_8bit:
        return torch.optim.AdamW(groups, fused=True, **values)
    bitsandbytes: Any = import_module("bitsandbytes.optim")
    optimizer: torch.optim.Optimizer = bitsandbytes.AdamW8bit(groups, **values)
    return optimizer


def _prodigy(
    groups: list[dict[str, Any]], settings: ProdigyOptimizerConfig
) -> torch.optim.Optimizer:
    # Its constructor prints that its weight decay is decoupled.
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer: torch.optim.Optimizer = import_module("prodigyopt").Prodigy(
            groups,
            weight_decay=settings.weight_decay,
            decouple=True,
            use_bias_correction=settings.use_bias_correction,
            safeguard_warmup=settings.safeguard_warmup,
        )
    return optimizer


def _tensor(value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
