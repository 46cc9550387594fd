"""Frozen models kept between the requests of one process.

A job's cache and train stages, and the next job of the same base model, find them loaded. Those
that a request does not use lie in main memory meanwhile, so that the GPU is free for the others.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worker.trainer.memory import release_memory


@dataclass(frozen=True)
class ModelSpec:
    """A model that a request uses.

    Attributes:
        identity: All that decides it; a kept one of another identity is dropped.
        load: Loads it onto the device.
        movable: Whether it survives a way to main memory and back; quantised ones are dropped.
    """

    identity: Hashable
    load: Callable[[], Any]
    movable: bool = True


class ModelCache:
    """The models of one process, one for each part: ``denoiser``, ``text``, ``vae``."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[ModelSpec, Any]] = {}

    def take(self, device: torch.device, wanted: Mapping[str, ModelSpec]) -> dict[str, Any]:
        """The wanted models by part, on the device; all others are off it."""
        for part, (kept, model) in list(self._kept.items()):
            if part in wanted and kept.identity == wanted[part].identity:
                continue
            if part in wanted or not kept.movable:
                del self._kept[part]
            else:
                model.to("cpu")
        release_memory()
        for part, want in wanted.items():
            if part not in self._kept:
                self._kept[part] = want, want.load()
            self._kept[part][1].to(device)
        return {part: self._kept[part][1] for part in wanted}

    def forget(self, part: str) -> None:
        """Drop a model that is not any more what its files say, if it is kept."""
        self._kept.pop(part, None)
