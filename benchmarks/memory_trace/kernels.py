"""What a CPU build of PyTorch lacks for the trainer on CUDA, for tensors without bytes.

Each replacement allocates what the real kernel allocates, and keeps for the backward pass what it
keeps.
"""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import _foreach_supported_types as _optimizers_foreach_types
from torch.utils._foreach_utils import _foreach_supported_types as _foreach_types

from worker.trainer import optimizer as trainer_optimizer
from worker.trainer.flux import quantization

CUDA = torch.device("cuda", 0)
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention
_EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention
_MULTIPROCESSORS = 132  # of an H100; fewer take less
_composite: dict[str, Callable[..., torch.Tensor]] = {
    "attention": torch.nn.functional.scaled_dot_product_attention,
    "rms_norm": torch.nn.functional.rms_norm,
}


def install() -> None:
    """Replace the functions that ask for a driver, and those whose kernels are missing."""
    functional: Any = torch.nn.functional
    functional.scaled_dot_product_attention = _attention
    functional.rms_norm = _rms_norm
    patched: Any = torch
    patched.autograd.set_multithreading_enabled(False)
    patched.cuda.amp.common.amp_definitely_not_available = lambda: False
    patched.cuda.is_bf16_supported = lambda *_, **__: True
    patched.cuda.current_device = lambda: 0
    nothing = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    patched.cuda.Event = lambda: nothing
    patched.Tensor.pin_memory = lambda self, *_, **__: self
    patched.nn.Module._apply = _apply
    # The scaler skips an update by a number that a fake tensor does not have.
    patched.amp.GradScaler._maybe_opt_step = lambda _, optimizer, state, *args: optimizer.step()
    importers: tuple[Any, ...] = (quantization, trainer_optimizer)
    for module in importers:
        module.import_module = lambda name: _BITSANDBYTES.get(name) or import_module(name)
    # CUDA's default for the optimizers, which they do not use for a subclass of tensors.
    for types in (_foreach_types, _optimizers_foreach_types):
        types.append(FakeTensor)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """Attend, (B, heads, tokens, width), by the kernel that strict determinism leaves on CUDA."""
    inputs: tuple[torch.Tensor, ...] = (query, key, value)
    if query.device.type != "cuda":
        mask, causal = attn_mask, is_causal
        return _composite["attention"](*inputs, mask, dropout_p, causal, scale=scale, **options)
    if torch.is_autocast_enabled("cuda"):
        inputs = tuple(t.to(torch.get_autocast_dtype("cuda")) for t in inputs)
    with torch.autocast("cuda", enabled=False):
        is_half = inputs[0].dtype != torch.float32
        if is_half and attn_mask is None and query.shape[-1] <= 256:
            found: torch.Tensor = _FLASH(*inputs, dropout_p, is_causal, scale=scale)[0]
            return found
        if attn_mask is not None:
            attn_mask = torch.empty_like(attn_mask, dtype=inputs[0].dtype)
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        flags = (needs_gradient, dropout_p, is_causal)
        result: torch.Tensor = _EFFICIENT(*inputs, attn_mask, *flags, scale=scale)[0]
        return result


def workspace_bytes(function: Any, arguments: tuple[Any, ...]) -> int:
    """Return what a kernel allocates and frees inside, by the sources of PyTorch's attention."""
    name = function.overloadpacket if hasattr(function, "overloadpacket") else function
    packets = torch.ops.aten
    if name not in (
        packets._scaled_dot_product_flash_attention_backward,
        packets._scaled_dot_product_efficient_attention_backward,
    ):
        return 0
    batch, heads, length, width = arguments[1].shape
    rows, columns = batch * heads, -(-width // 32) * 32
    if name is packets._scaled_dot_product_efficient_attention_backward:
        return int(rows * -(-length // 64) * 64 * columns * 4)
    # Flash attention adds the query's gradient in float32, when deterministic in several parts.
    parts = -(-_MULTIPROCESSORS // rows)
    return int(parts * rows * -(-length // 128) * 128 * columns * 4)


class _FusedRmsNorm(torch.autograd.Function):
    """CUDA's kernel: it keeps its input and one number a row."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].clone()


def _rms_norm(
    x: torch.Tensor, shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    if x.device.type != "cuda":
        return _composite["rms_norm"](x, shape, weight, eps)
    if torch.is_autocast_enabled("cuda"):
        x = x.float()  # by autocast's policy for CUDA
    found: torch.Tensor = _FusedRmsNorm.apply(x)  # type: ignore[no-untyped-call]
    return found


def _apply(module: torch.nn.Module, change: Callable[[Any], Any], recurse: bool = True) -> Any:
    """Change the tensors of a module; PyTorch's own would swap fake ones, which have references."""
    for child in module.children():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            changed = change(parameter)
        if changed is not parameter:
            module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


class _Product4(torch.autograd.Function):
    """bitsandbytes' product with a 4-bit weight, of which both directions make a 16-bit one."""

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, layer: "_LinearNF4", bias: torch.Tensor | None
    ) -> torch.Tensor:
        context.layer = layer
        weight = x.new_empty(layer.out_features, layer.in_features)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        [gradient], layer = gradients, context.layer
        return gradient @ gradient.new_empty(layer.out_features, layer.in_features), None, None


class _LinearNF4(torch.nn.Linear):
    """bitsandbytes' layer: 4 bits a weight, 8 bits for each 64, float32 for each 256 of these."""

    def __init__(self, inputs: int, outputs: int, bias: bool, compute_dtype: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias, device="meta")
        self.compute_dtype = compute_dtype

    def to(self, *_: Any, **__: Any) -> Any:
        """Quantize."""
        count = self.in_features * self.out_features
        packed = torch.empty(
            count // 2 + count // 64 + count // 4096, dtype=torch.uint8, device=CUDA
        )
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T + b in the input's precision."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        result: torch.Tensor = _Product4.apply(x.to(self.compute_dtype), self, bias)  # type: ignore[no-untyped-call]
        return result.to(x.dtype)


class _AdamW8bit(torch.optim.Optimizer):
    """bitsandbytes' optimizer: two moments in 8 bits with a scale for each 256 weights."""

    def __init__(self, parameters: Any, **values: Any) -> None:
        super().__init__(parameters, values)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state; its kernel works in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.numel() < 4096:
                    kind, scales = torch.float32, 0
                else:
                    kind, scales = torch.uint8, -(-parameter.numel() // 256)
                for moment in ("state1", "state2"):
                    state = self.state[parameter]
                    state.setdefault(moment, torch.empty_like(parameter, dtype=kind))
                    state.setdefault(f"absmax{moment}", parameter.new_empty(scales))


_BITSANDBYTES = {
    "bitsandbytes": SimpleNamespace(
        nn=SimpleNamespace(LinearNF4=_LinearNF4, Params4bit=lambda data, **_: None)
    ),
    "bitsandbytes.optim": SimpleNamespace(AdamW8bit=_AdamW8bit),
}
