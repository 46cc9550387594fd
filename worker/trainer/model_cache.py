"""Frozen models kept between the requests of one process.

A job's cache and train stages, and the next job of the same base model, find them loaded. Models
that a request does not use wait in main memory, so that the GPU is free for the others.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worker.trainer.compute.memory import release_memory


@dataclass(frozen=True)
class ModelSpec:
    """A model that a request uses.

    Attributes:
        identity: Everything that decides the model; a cached one of another identity is dropped.
        load: Loads the model onto the device.
        movable: Whether it can be moved to main memory and back; quantized models cannot, stay
            where they were loaded, and are dropped instead.
    """

    identity: Hashable
    load: Callable[[], Any]
    movable: bool = True


class ModelCache:
    """The models of one process, one for each part: ``denoiser``, ``text``, ``vae``."""

    def __init__(self) -> None:
        self._cached: dict[str, tuple[ModelSpec, Any]] = {}

    def take(self, device: torch.device, specs: Mapping[str, ModelSpec]) -> dict[str, Any]:
        """Return models by part, on the device; all others are moved off it.

        Args:
            device: The device that computes.
            specs: The wanted models by part.
        """
        for part, (cached, model) in list(self._cached.items()):
            if part in specs and cached.identity == specs[part].identity:
                continue
            if part in specs or not cached.movable:
                del self._cached[part]
            else:
                model.to("cpu")
        release_memory()
        for part, spec in specs.items():
            if part not in self._cached:
                self._cached[part] = spec, spec.load()
            if spec.movable:
                self._cached[part][1].to(device)
        # What loading needed beside the models, which would count as a run's peak.
        release_memory()
        return {part: self._cached[part][1] for part in specs}

    def drop(self, part: str) -> None:
        """Drop a model that a run has changed."""
        self._cached.pop(part, None)
