"""Follows the operations of a run on the fake device: the memory they hold, and their work.

Every storage on the device counts from the operation that makes it until it is freed, rounded up as
CUDA's caching allocator does.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from benchmarks.memory_trace.kernels import workspace_bytes

_ROUNDING = 512
_STEP = ("forward", "update")  # and the backward pass, which the forward phase becomes
_aten = torch.ops.aten
_NO_KERNEL = {_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default}
_NO_KERNEL |= {_aten.new_empty.default, _aten._unsafe_view.default}


@dataclass
class Trace:
    """What a run took on the device.

    Attributes:
        resident: Bytes of the models, of the trained weights with their average, and of the
            optimizer's state.
        peaks: The most bytes in each phase, those of ``resident`` included.
        work: Floating-point operations, kernels, bytes that kernels read and write, copies to and
            from the device, and waits for it.
    """

    resident: dict[str, int] = field(default_factory=dict)
    peaks: Counter[str] = field(default_factory=Counter)
    work: Counter[str] = field(default_factory=Counter)

    @property
    def peak(self) -> int:
        """The most bytes in any phase."""
        return max(self.peaks.values())

    def plus(self, times: int, one_more: "Trace", base: "Trace") -> "Trace":
        """Return the trace with as many more blocks of a kind as ``one_more`` has one beyond base.

        It holds to the byte where all those blocks are alike.
        """

        def sums(mine: Mapping[str, int], more: Mapping[str, int], less: Mapping[str, int]) -> Any:
            return {key: mine[key] + times * (more[key] - less[key]) for key in mine}

        return Trace(
            sums(self.resident, one_more.resident, base.resident),
            Counter(sums(self.peaks, one_more.peaks, base.peaks)),
            Counter(sums(self.work, one_more.work, base.work)),
        )


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every operation on the fake device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.phase = "build"
        self.finite = True
        """The answer to the question whether numbers are finite."""
        self._sizes: dict[int, int] = {}
        self._now = 0

    def begin(self, phase: str) -> None:
        """Attribute what happens from now on to a phase."""
        self.phase = phase

    def note_resident(self, part: str) -> None:
        """Attribute to a part what was added to the device since the last call."""
        gc.collect()
        self.trace.resident[part] = self._now - sum(self.trace.resident.values())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what it takes."""
        kwargs = kwargs or {}
        if function.namespace == "prim":
            return function(*args, **kwargs)
        if function is _aten.equal.default:
            return True  # no caption is cut
        if function is _aten._local_scalar_dense.default:
            if self.phase in _STEP:
                self._count_copy(args[0], None, waits=True)
            kind = args[0].dtype
            return self.finite if kind == torch.bool else 0.5 if kind.is_floating_point else 0
        if function is _aten.nonzero.default and args[0].device.type == "cuda":
            if self.phase in _STEP:  # the host waits for the number of those found
                self.trace.work.update({"kernels": 1, "copies from the device": 1, "waits": 1})
            return args[0].new_empty((1, args[0].dim()), dtype=torch.int64)
        result = function(*args, **kwargs)
        outputs = [t for t in tree_iter(result) if isinstance(t, torch.Tensor)]
        for tensor in outputs:
            self._follow(tensor)
        if self.phase in _STEP:
            self._count(function, args, kwargs, result, outputs)
        if self.phase == "build":
            return result
        in_backward = self.phase == "forward" and torch._C._current_graph_task_id() >= 0
        phase = "backward" if in_backward else self.phase
        now = self._now + workspace_bytes(function, args)
        self.trace.peaks[phase] = max(self.trace.peaks[phase], now)
        return result

    def _follow(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cuda" or is_traceable_wrapper_subclass(tensor):
            return  # a wrapper has no bytes; the tensors that it wraps count
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // _ROUNDING) * _ROUNDING
            self._now += self._sizes[key]
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def _count(
        self,
        function: Any,
        args: Any,
        kwargs: Mapping[str, Any],
        result: Any,
        outputs: list[torch.Tensor],
    ) -> None:
        inputs = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        if all(t.device.type != "cuda" for t in (*inputs, *outputs)):
            return
        if len({t.device.type for t in (*inputs, *outputs) if t.dim()}) > 1:
            waits = not kwargs.get("non_blocking")
            self._count_copy(inputs[-1], outputs[0] if outputs else None, waits=waits)
            return
        if function.is_view or function in _NO_KERNEL:
            return
        work, packet = self.trace.work, function.overloadpacket
        work["kernels"] += 1
        work["bytes"] += sum(t.nbytes for t in (*inputs, *outputs))
        if packet in flop_registry:
            work["flop"] += flop_registry[packet](*args, **kwargs, out_val=result)

    def _count_copy(
        self, source: torch.Tensor, target: torch.Tensor | None, *, waits: bool
    ) -> None:
        if source.device.type == "cuda":
            # The host waits for what it reads at once.
            self.trace.work.update({"copies from the device": 1, "waits": int(waits)})
        elif target is not None:
            self.trace.work["copies to the device"] += 1
