"""The optimizer of a run: made from its config, its state converted to tensors and back.

An optimizer keeps tensors and counts for each weight, and Prodigy a few numbers for all of them.
Adafactor and Prodigy are the formulas of torch 2.13 and prodigyopt 1.1, which wait for the device
twice a weight.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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

# The numbers of Prodigy's parameter groups, at a run's start.
_PRODIGY_NUMBERS = {"d": 1e-6, "d0": 1e-6, "d_max": 1e-6, "d_numerator": 0.0, "k": 0}
_PRODIGY_MOMENTS = ("exp_avg", "exp_avg_sq")
# The numbers of the weights that are updated at once. Temporary memory is a few times as much; with
# fewer, kernels take less time than their launch.
_AT_ONCE = 2**24


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
            return Prodigy(groups, settings)
        case AdafactorOptimizerConfig():
            return Adafactor(
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
                # Adafactor counts in a tensor on the CPU, bitsandbytes in a number.
                is_adafactor = isinstance(optimizer, torch.optim.Adafactor)
                restored[moment] = tensor if is_adafactor else tensor.item()
        if restored:
            optimizer.state[parameter] = restored
    for group in optimizer.param_groups:
        for name in _PRODIGY_NUMBERS:
            if name in group:
                group[name] = tensors[f"group/{name}"].item()


class WeightAverage(EMAModel):
    """The moving average of weights: diffusers', in one pass and without other memory."""

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Move the average towards the weights."""
        self.optimization_step += 1
        share = 1 - self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, list(parameters), share)


class Adafactor(torch.optim.Adafactor):
    """Adafactor (Shazeer & Stern, 2018), of all weights of one shape at once, without a wait."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            weights: list[torch.Tensor] = []
            self._init_group(group, weights, *([] for _ in range(5)))
            for weight in weights:
                # The count is on the CPU.
                alike[weight.shape, self.state[weight]["step"].item()].append(weight)
            for weights in alike.values():
                for part in _parts(weights):
                    self._update(part, group)

    def _update(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        states = [self.state[weight] for weight in weights]
        torch._foreach_add_([state["step"] for state in states], 1.0)
        step = states[0]["step"].item()
        grads = torch.stack([_gradient(weight) for weight in weights])  # (n, *shape)
        eps, root = torch.finfo(grads.dtype).eps, grads[0].numel() ** 0.5
        # The change's root mean square, and its division by the update's: root cancels out.
        moves = torch.stack(torch._foreach_norm(weights)).clamp_(min=group["eps"][1] * root)  # (n,)
        moves *= min(group["lr"], step**-0.5) * group["d"]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])

        def moment(name: str, squares: torch.Tensor) -> torch.Tensor:
            moments: list[torch.Tensor] = [state[name] for state in states]
            torch._foreach_lerp_(moments, squares.unbind(), step ** group["beta2_decay"])
            return torch.stack(moments)

        def mean_squares(dim: int) -> torch.Tensor:
            norms: torch.Tensor = torch.linalg.vector_norm(grads, dim=dim, keepdim=True)
            return norms.square_().div_(grads.shape[dim])

        if grads.dim() > 2:
            rows = moment("row_var", mean_squares(-1))  # (n, ..., R, 1)
            columns = moment("col_var", mean_squares(-2))  # (n, ..., 1, C)
            rows /= rows.mean(-2, keepdim=True).clamp_(min=eps)
            updates = rows.rsqrt_() * columns.rsqrt_()  # (n, *shape)
        else:
            updates = moment("variance", grads.square()).rsqrt_()
        updates.clamp_(max=1 / eps).mul_(grads)
        moves /= torch.stack(torch._foreach_norm(updates.unbind())).clamp_(min=group["d"] * root)
        updates *= moves.view(-1, *(1,) * (grads.dim() - 1))
        torch._foreach_sub_(weights, list(updates.unbind()))


class Prodigy(torch.optim.Optimizer):
    """Prodigy (Mishchenko & Defazio, 2023), of many weights at once, with one wait."""

    def __init__(self, groups: list[dict[str, Any]], settings: ProdigyOptimizerConfig) -> None:
        super().__init__(groups, {"weight_decay": settings.weight_decay, **_PRODIGY_NUMBERS})
        self._settings = settings

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        first, beta1, beta2, eps = self.param_groups[0], 0.9, 0.999, 1e-8
        d, updates, beta3 = first["d"], first["k"] + 1, beta2**0.5
        rate = d * first["lr"]
        if self._settings.use_bias_correction:
            rate *= (1 - beta2**updates) ** 0.5 / (1 - beta1**updates)
        pull = d / first["d0"] * (d if self._settings.safeguard_warmup else rate)
        everything = (weight for group in self.param_groups for weight in group["params"])
        weights = [weight for weight in everything if weight.grad is not None]
        for weight in weights:
            if weight not in self.state:
                start = weight.flatten().clone()
                self.state[weight] = {"s": torch.zeros_like(start), "p0": start}
                self.state[weight] |= {m: torch.zeros_like(weight) for m in _PRODIGY_MOMENTS}
        if first["lr"] == 0 or not weights:
            return
        sums = []
        for part in _parts(weights):
            s, starts, means, squares = self._states(part, "s", "p0", *_PRODIGY_MOMENTS)
            grads = [_gradient(weight) for weight in part]
            flat = [gradient.flatten() for gradient in grads]
            ways = torch._foreach_sub(starts, [weight.flatten() for weight in part])
            torch._foreach_mul_(ways, flat)
            torch._foreach_mul_(means, beta1)
            torch._foreach_add_(means, grads, alpha=d * (1 - beta1))
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, value=d * d * (1 - beta2))
            torch._foreach_mul_(s, beta3)
            torch._foreach_add_(s, flat, alpha=pull)
            sums.append(torch.cat(ways).sum())
            sums.append(torch.stack(torch._foreach_norm(s, 1)).sum())
        numerator, denominator = torch.stack(sums).double().view(-1, 2).sum(0).tolist()
        if denominator == 0:
            return
        numerator = beta3 * first["d_numerator"] + d / first["d0"] * rate * numerator
        d = max(first["d_max"], numerator / denominator)
        for group in self.param_groups:
            group |= {"d": d, "d_max": d, "d_numerator": numerator, "k": updates}
        for part in _parts(weights):
            means, squares = self._states(part, *_PRODIGY_MOMENTS)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, d * eps)
            if first["weight_decay"]:
                torch._foreach_mul_(part, 1 - first["weight_decay"] * rate)
            torch._foreach_addcdiv_(part, means, roots, value=-rate)

    def _states(self, weights: list[torch.Tensor], *names: str) -> list[list[torch.Tensor]]:
        return [[self.state[weight][name] for weight in weights] for name in names]


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


def _parts(weights: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    part: list[torch.Tensor] = []
    size = 0
    for weight in weights:
        if part and size + weight.numel() > _AT_ONCE:
            yield part
            part, size = [], 0
        part.append(weight)
        size += weight.numel()
    if part:
        yield part


def _gradient(weight: torch.Tensor) -> torch.Tensor:
    assert weight.grad is not None
    return weight.grad


def _tensor(value: object) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
