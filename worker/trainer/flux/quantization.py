"""Quantizes the linear layers of a frozen transformer to 8 or 4 bits, by torchao or bitsandbytes.

All of the blocks' layers, which hold 99 % of the weights, as QLoRA does (Dettmers et al., 2023):
their modulations (``norm1.linear``) alone are a quarter. The embeddings and the last layer stay.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from worker.trainer.compute.memory import release_memory

_BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def quantize(
    model: torch.nn.Module,
    kind: str,
    device: torch.device,
    load: Callable[[str], None] = lambda _: None,
) -> None:
    """Quantize a model, block by block while it is loaded onto the device, where it stays.

    The device never holds more than one unquantized block.

    Args:
        model: FLUX's transformer, frozen.
        kind: ``fp8``, ``int8`` or ``nf4``.
        device: The device.
        load: Loads the weights of one of the model's modules, given its path; by default the model
            has them.
    """
    for name, part in model.named_children():
        for number, block in part.named_children() if name in _BLOCKS else ():
            load(f"{name}.{number}")
            block.to(device)
            _quantize_block(block, kind, device)
        if name not in _BLOCKS:
            load(name)
            part.to(device)
    # The last blocks' unquantized weights.
    release_memory()


def _quantize_block(block: torch.nn.Module, kind: str, device: torch.device) -> None:
    for path, linear in list(block.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            layer = _in_nf4(linear, device) if kind == "nf4" else _in_8_bits(linear, kind)
            layer.register_forward_pre_hook(_cast_input)
            block.set_submodule(path, layer)


def _in_8_bits(linear: torch.nn.Linear, kind: str) -> torch.nn.Module:
    """Quantize weights to 8 bits with a scale for each row."""
    torchao = import_module("torchao.quantization")
    config = torchao.Float8WeightOnlyConfig if kind == "fp8" else torchao.Int8WeightOnlyConfig
    layer = _Linear8(linear.in_features, linear.out_features, device="meta")
    layer.weight, layer.bias = linear.weight, linear.bias
    # Without the process-wide settings of inductor that it recommends for inference.
    torchao.quantize_(layer, config(set_inductor_config=False))
    # torchao makes a new parameter, which is trainable by default.
    return layer.requires_grad_(False)


def _in_nf4(linear: torch.nn.Linear, device: torch.device) -> torch.nn.Module:
    """Quantize to 4-bit normal floats, a scale for each 64 weights (Dettmers et al., 2023)."""
    bitsandbytes = import_module("bitsandbytes")
    layer: Any = bitsandbytes.nn.LinearNF4(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4"
    )
    layer.bias = linear.bias
    # Validation would repack the weights for the CPU, in a format that cannot be trained on.
    layer.support_avx512bf16_for_cpu = False
    # The move to the device quantizes the weights.
    moved: torch.nn.Module = layer.to(device)
    return moved


def _cast_input(_layer: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    """Cast a layer's input as autocast does for ordinary layers.

    A quantized layer returns its input's dtype, and a norm's output is float32: all that follows
    would be float32, too.
    """
    [x] = args
    device = x.device.type
    return (x.to(torch.get_autocast_dtype(device)),) if torch.is_autocast_enabled(device) else None


class _Linear8(torch.nn.Linear):
    """A frozen linear layer whose weight torchao keeps in 8 bits, for the backward pass too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b, (..., out), for x (..., in)."""
        product: Any = _Product8.apply
        result: torch.Tensor = product(x, self.weight, self.bias)
        return result


class _Product8(torch.autograd.Function):
    """The product with an 8-bit weight: autograd itself would keep the 16-bit weight it is made of.

    Forward and backward are torchao's, to the bit; each makes the 16-bit weight for itself.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """Return x W^T + b, (..., out)."""
        ctx.weight = weight  # a frozen parameter, which its layer keeps alive
        return torch.nn.functional.linear(x, weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of x, (..., in)."""
        [grad], weight = grads, ctx.weight
        if weight.qdata.dtype != torch.int8:  # y = x W^T
            return grad @ weight.dequantize(grad.dtype), None, None
        scaled = grad * weight.scale.to(grad.dtype).flatten()  # y = (x Q^T) * scale
        return scaled @ weight.qdata.to(grad.dtype), None, None
