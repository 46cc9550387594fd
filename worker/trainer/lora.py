"""LoRA layers (Hu et al., 2021) on a frozen model, cast to the precision of a run once a batch.

Autocast would cast each weight in a kernel of its own, in the forward pass, in each recomputation,
and its gradient in the backward pass.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Conv2d, Linear, Module, Parameter
from torch.nn.functional import conv2d, linear

from worker.trainer.errors import TargetError
from worker.trainer.export.lora_file import clip_path
from worker.trainer.rng import StatelessRng

# Layers whose weights are cast in one call. More would keep more gradients in both precisions.
_CAST_TOGETHER = 16


class Lora:
    """The LoRA layers of a run, whose weights are float32.

    Attributes:
        parameters: The trained weights by name (``unet.mid_block.attentions.0.proj_in.lora_A``),
            sorted within a model.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Parameter] = {}
        self._layers: list[tuple[Module, str, _LoraLayer]] = []

    def add(
        self,
        model: Module,
        name: str,
        targets: Sequence[str] | str,
        rank: int,
        alpha: float,
        rng: StatelessRng,
    ) -> None:
        """Add LoRA layers to a model.

        Args:
            model: A diffusers or transformers model, frozen.
            name: The model's name in the names of its weights (``unet``).
            targets: The ends of layers' names, or one regular expression for whole names.
            rank: The rank r of the matrices A (r, in) and B (out, r).
            alpha: A LoRA changes its layer by alpha / rank * B A.
            rng: Draws the initial A.

        Raises:
            TargetError: A target matches no layer.
        """
        layers = {k: it for k, it in model.named_modules() if isinstance(it, Linear | Conv2d)}
        if isinstance(targets, str):
            patterns = {targets: targets}
        else:
            patterns = {target: rf"(?:.*\.)?{re.escape(target)}" for target in targets}
        matches = {
            target: {path for path in layers if re.fullmatch(pattern, path)}
            for target, pattern in patterns.items()
        }
        if unmatched := [target for target, paths in matches.items() if not paths]:
            raise TargetError(name, unmatched)
        found = {}
        for path in sorted(set.union(*matches.values())):
            layer = _LoraLayer(layers[path], rank, alpha / rank)
            for part, parameter in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                weight = lora_weight_name(name, f"{path}.{part}")
                parameter.data = initial_value(weight, parameter, rng)
                found[weight] = parameter
            model.set_submodule(path, layer)
            self._layers.append((model, path, layer))
        self.parameters |= dict(sorted(found.items()))

    def cast(self) -> None:
        """Cast the weights to the precision of autocast, for the forward and backward pass."""
        layers = [layer for _, _, layer in self._layers]
        device = layers[0].lora_A.device.type
        if not torch.is_autocast_enabled(device):
            return
        cast: Any = _Cast.apply  # it has no type
        for start in range(0, len(layers), _CAST_TOGETHER):
            some = layers[start : start + _CAST_TOGETHER]
            weights = [it for layer in some for it in (layer.lora_A, layer.lora_B)]
            copies = cast(some, torch.get_autocast_dtype(device), *weights)
            for layer, a, b in zip(some, copies[::2], copies[1::2], strict=True):
                layer.cast = a, b

    def remove(self) -> None:
        """Remove the layers from their models."""
        for model, path, layer in self._layers:
            model.set_submodule(path, layer.base_layer)


class _LoraLayer(Module):
    """A frozen layer with a LoRA.

    Args:
        base: The layer.
        rank: The rank r of the matrices.
        scale: The factor of the change.

    Attributes:
        cast: A and B in the precision of the batch; by them gradients reach the parameters.
    """

    def __init__(self, base: Linear | Conv2d, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer = base
        self.scale = scale
        self.cast: tuple[torch.Tensor, torch.Tensor] | None = None
        shapes: tuple[tuple[int, ...], ...]
        if isinstance(base, Linear):
            shapes = (rank, base.in_features), (base.out_features, rank)
        else:
            shapes = (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank, 1, 1)
        a, b = (Parameter(torch.empty(shape, device=base.weight.device)) for shape in shapes)
        self.lora_A, self.lora_B = a, b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x + scale * B A x."""
        y: torch.Tensor = self.base_layer(x)
        # Validation computes without gradients, and with weights that changed since they were cast.
        cast = self.cast if torch.is_grad_enabled() else None
        a, b = cast or (self.lora_A, self.lora_B)
        if isinstance(self.base_layer, Conv2d):
            change = conv2d(self.base_layer._conv_forward(x, a, None), b)
        else:
            change = linear(linear(x, a), b)
        return torch.add(y, change, alpha=self.scale)


class _Cast(torch.autograd.Function):
    """Casts the weights of layers, and their gradients back to float32, with one call each."""

    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[_LoraLayer], dtype: torch.dtype, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the weights in another precision."""
        ctx.set_materialize_grads(False)
        ctx.layers = layers
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients in float32, and free the copies."""
        for layer in ctx.layers:
            layer.cast = None
        found = iter(_cast(tuple(g for g in grads if g is not None), torch.float32))
        return None, None, *(None if grad is None else next(found) for grad in grads)


def _cast(tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(copies, tensors)
    return copies


def lora_weight_name(model: str, path: str) -> str:
    """Return the name of a LoRA weight from its path (``....lora_A``)."""
    return f"{model}.{clip_path(path) if model.startswith('text_encoder') else path}"


def initial_value(name: str, parameter: Parameter, rng: StatelessRng) -> torch.Tensor:
    """Return the initial value of a LoRA matrix.

    B is zero, so that training starts from the base model; A is drawn as PyTorch does for a linear
    layer (``kaiming_uniform`` with a = sqrt(5), by fan-in).
    """
    if name.endswith("lora_B"):
        return torch.zeros(parameter.shape, device=parameter.device)
    bound = 1 / math.sqrt(parameter[0].numel())
    values = rng.uniform(tuple(parameter.shape), "lora", name) * (2 * bound) - bound
    return values.to(parameter.device)
