"""Keeps a frozen transformer's linear layers in 8 or 4 bits, by torchao or bitsandbytes.

Only layers of the blocks that take no part in normalisation: they hold nearly all weights, and the
embeddings, the modulations and the last layer are the ones that suffer most.
"""

from importlib import import_module
from typing import Any

import torch

_BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def quantize(model: torch.nn.Module, kind: str, device: torch.device) -> None:
    """Quantise a model on the CPU, block by block on its way to the device.

    The device never holds more than one block as it was.

    Args:
        model: FLUX's transformer, frozen.
        kind: ``fp8``, ``int8`` or ``nf4``.
        device: Where its blocks go; the rest stays where it is.
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
    """Weights of 8 bits with a scale for each row, multiplied out at each use."""
    torchao = import_module("torchao.quantization")
    config = torchao.Float8WeightOnlyConfig if kind == "fp8" else torchao.Int8WeightOnlyConfig
    torchao.quantize_(block, config(), filter_fn=_is_quantized)
    # The new weights are parameters like any others, and they are frozen.
    block.requires_grad_(False)


def _to_nf4(block: torch.nn.Module, device: torch.device) -> None:
    """4-bit normal floats with a scale for each 64 weights (Dettmers et al., 2023)."""
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
        # It quantises as it moves.
        block.set_submodule(path, layer.to(device))
