"""Deterministic kernels: the same weights from the same draws, bit for bit on the same hardware.

Strict mode is needed: with ``warn_only``, the backward pass of PyTorch's flash and cuDNN attention
stays nondeterministic (aten/src/ATen/native/transformers/cuda).
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from tasks.events import Note
from worker.trainer.compute.kernels import use_kernels
from worker.trainer.event_pipe import Emit

T = TypeVar("T")

# By torch.Context::alertNotDeterministic; while a block is compiled, within another error's text.
_NO_KERNEL = re.compile(r"([\w.=]+) does not have a deterministic implementation")


class Determinism:
    """How this process computes, set for each request: a warm trainer keeps the last mode.

    Args:
        emit: Takes a note if the request cannot be computed deterministically.
        wanted: Whether to use deterministic kernels only.
        strict: Whether an operator without such a kernel is an error, which ``run`` handles.
        device: The device, whose kernels are chosen here; None leaves the choice to PyTorch.
        is_float32: Whether all is computed in float32, which may then be TF32.

    Attributes:
        problem: Why a repeated run may differ in its last bits; None if it may not.
        kernels: The device and its kernels, by name.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        wanted: bool = True,
        strict: bool = True,
        device: torch.device | None = None,
        is_float32: bool = False,
    ) -> None:
        self._emit = emit
        self.problem: str | None = None
        self.kernels: dict[str, str] = {}
        if device is not None:
            self.kernels = use_kernels(device, deterministic=wanted, is_float32=is_float32)
        if not wanted:
            self.problem = "the option deterministic is false"
        torch.use_deterministic_algorithms(wanted, warn_only=not strict)
        # A debugging aid that the line above turns on; it costs a write for each new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def run(self, compute: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
        """Call a function, once more without strictness if an operator has no deterministic kernel.

        Args:
            compute: The function.
            undo: Undoes what it has changed before it failed.
        """
        try:
            return compute()
        except RuntimeError as error:
            found = _NO_KERNEL.search(str(error))
            if found is None:
                raise
            self._warn_of(f"{found[1]} has no deterministic kernel on this device")
            torch.use_deterministic_algorithms(True, warn_only=True)
        undo()
        return compute()

    def resume(self, problem: str, kernels: Mapping[str, str]) -> None:
        """Continue a run that an earlier start began.

        Args:
            problem: The earlier start's; it stays one of the run. Empty if it had none.
            kernels: The device and the kernels that the run began with.
        """
        self.problem = problem or self.problem
        changed = [
            f"{name} {began} became {now}"
            for name, began in kernels.items()
            if (now := self.kernels.get(name, "none")) != began
        ]
        if changed:
            self._warn_of(f"the run resumed with other kernels: {'; '.join(changed)}")

    def _warn_of(self, problem: str) -> None:
        self.problem = problem
        message = f"{problem}: a repeated or resumed run may differ in its last bits"
        self._emit(Note(level="warning", message=message))
