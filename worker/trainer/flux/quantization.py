"""Quantizes the linear layers of a frozen transformer to 8 or 4 bits, by torchao or bitsandbytes.

Only the blocks' layers that take no part in normalization: they hold nearly all weights, and the
embeddings, the modulations and the last layer lose the most accuracy.
"""

from importlib import import_module
from typing import Any

import torch

_BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def quantize(model: torch.nn.Module, kind: str, device: torch.device) -> None:
    """Quantize a model on the CPU, block by block while it moves to the device.

    The device never holds more than one unquantized block.

    Args:
        model: FLUX's transformer, frozen.
        kind: ``fp8``, ``int8`` or ``nf4``.
        device: The device of the blocks; the rest stays on the CPU.
    """
    for name in _BLOCKS:
        for block in getattr(model, name):
            block.to(device)
            if kind == "nf4":
                _to_nf4(block, device)
            else:
                _to_8_bits(block, kind)


def _is_quantized(module: torch.nn.Module, path: str) -> bool:
    return isinstance(module, torch.nn.Linear) and not path.startswith("norm")


def _to_8_bits(block: torch.nn.Module, kind: str) -> None:
    """Quantize weights to 8 bits with a scale for each row; each use dequantizes them."""
    torchao = import_module("torchao.quantization")
    config = torchao.Float8WeightOnlyConfig if kind == "fp8" else torchao.Int8WeightOnlyConfig
    torchao.quantize_(block, config(), filter_fn=_is_quantized)
    # torchao makes new parameters, which are trainable by default.
    block.requires_grad_(False)


def _to_nf4(block: torch.nn.Module, device: torch.device) -> None:
    """Quantize to 4-bit normal floats, a scale for each 64 weights (Dettmers et al., 2023)."""
    bitsandbytes = import_module("bitsandbytes")
    for path, linear in list(block.named_modules()):
        if not isinstance(linear, torch.nn.Linear) or not _is_quantized(linear, path):
            continue
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
        # The move to the device quantizes the weights.
        block.set_submodule(path, layer.to(device))
