"""The kernels that a request computes with, chosen for its card and set for each request.

The choice is a function of the card and the request alone: PyTorch's own order of attention kernels
has changed from release to release, and a run must resume with the kernels that it began with.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Capability = tuple[int, int]

_NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.MATH: "math",
}
_HOPPER = 9
_AMPERE = (8, 0)
# Older ones compute wrong results for some lengths (pytorch/pytorch#169849).
_CUDNN_FIXED = 91501

# Attention kernels are set for the process by a context, which the next request ends.
_in_use = ExitStack()


def attention_kernels(
    capability: Capability, cudnn: int, *, deterministic: bool
) -> list[SDPBackend]:
    """Return the attention kernels of a card, first choice first.

    PyTorch takes the first one that can compute a call: flash knows no mask and no float32.
    cuDNN's is up to twice as fast as flash on Hopper, and slower on other cards
    (huggingface/transformers#48163); its backward pass is not deterministic.

    Args:
        capability: The card's compute capability.
        cudnn: The version of cuDNN, such as 91501 for 9.15.1.
        deterministic: Whether a repeated run must have the same bits.
    """
    found = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if capability >= _AMPERE:
        found = [SDPBackend.FLASH_ATTENTION, *found]
    if capability[0] == _HOPPER and cudnn >= _CUDNN_FIXED and not deterministic:
        found = [SDPBackend.CUDNN_ATTENTION, *found]
    return found


def float32_precision(capability: Capability, *, is_float32: bool) -> str:
    """Return PyTorch's name for the precision of float32 matrix products: ``high`` is TF32.

    Args:
        capability: The card's compute capability.
        is_float32: Whether the run computes in float32 throughout: without TF32, a tenth as fast.
    """
    return "high" if is_float32 and capability >= _AMPERE else "highest"


def use_kernels(device: torch.device, *, deterministic: bool, is_float32: bool) -> dict[str, str]:
    """Choose and set the kernels of a request; the CPU keeps its own.

    Returns:
        What must be the same for the same bits, for people.
    """
    if device.type != "cuda":
        return {"device": device.type}
    capability = torch.cuda.get_device_capability(device)
    cudnn = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    attention = attention_kernels(capability, cudnn, deterministic=deterministic)
    precision = float32_precision(capability, is_float32=is_float32)
    set_kernels(attention, precision)
    return {
        "device": torch.cuda.get_device_name(device),
        "attention": ", ".join(_NAMES[kernel] for kernel in attention),
        "float32": "tf32" if precision == "high" else "ieee",
    }


def set_kernels(attention: Sequence[SDPBackend], precision: str) -> None:
    """Set the attention kernels, first choice first, and the precision of float32 products."""
    _in_use.close()
    _in_use.enter_context(sdpa_kernel(list(attention), set_priority=True))
    torch.set_float32_matmul_precision(precision)
