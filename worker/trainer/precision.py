"""The precision that a run computes in."""

from contextlib import AbstractContextManager, nullcontext

import torch

from tasks.jobs.pipeline import PipelineConfig

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """A run's precision: mixed_precision's, or else weight_dtype's.

    Args:
        config: The run's.
        device: What it computes on.
    """

    def __init__(self, config: PipelineConfig, device: torch.device) -> None:
        weights: torch.dtype = getattr(torch, config.weight_dtype)
        self._dtype = _DTYPES.get(config.mixed_precision, weights)
        self._device = device

    @property
    def scales_loss(self) -> bool:
        """Whether gradients could vanish without a loss scale: where it computes in float16."""
        return self._dtype == torch.float16

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the forward pass; none for float32."""
        if self._dtype == torch.float32:
            return nullcontext()
        context: AbstractContextManager[object] = torch.autocast(
            self._device.type, dtype=self._dtype
        )
        return context
