"""Norms of a denoiser without repeated casts.

CUDA's autocast computes norms in float32: it would cast their frozen weights in each batch, and
their output for each layer behind and each LoRA. Cast once, the gradients of these layers are added
in half precision: with other last bits, and within 1 % of the same distance from float64.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle


def cast_norms_once(model: torch.nn.Module) -> list[Callable[[], object]]:
    """Keep norms' weights in float32, and cast their outputs once under autocast.

    Args:
        model: FLUX's transformer or SDXL's UNet.

    Returns:
        What restores the model, to be called after the run.
    """
    undo: list[Callable[[], object]] = []
    for module in model.modules():
        if isinstance(module, AdaLayerNormZero | AdaLayerNormZeroSingle):
            undo.append(module.register_forward_hook(_cast_first_output).remove)
        elif isinstance(module, FeedForward):  # FLUX scales and shifts a norm's output before it
            undo.append(module.register_forward_pre_hook(_cast_input).remove)
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
            if module.weight is None:  # FLUX's, inside of others
                continue
            undo.append(partial(module.to, module.weight.dtype))
            module.float()
            if isinstance(module, torch.nn.LayerNorm):
                undo.append(module.register_forward_hook(_cast_output).remove)
    return undo


def _cast_output(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return _cast(output)


def _cast_first_output(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> Any:
    return _cast(outputs[0]), *outputs[1:]  # the others are scales, shifts and gates


def _cast_input(_module: torch.nn.Module, inputs: Any) -> Any:
    return _cast(inputs[0]), *inputs[1:]


def _cast(x: torch.Tensor) -> torch.Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
