"""The model families, each a folder beside this module, and their training types."""

from typing import Any

import torch

from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.data.inputs import TextEncoders
from worker.trainer.flux.family import FLUX_TYPES
from worker.trainer.model_cache import ModelCache
from worker.trainer.sdxl.family import SDXL_TYPES
from worker.trainer.training_type import TrainingType

TRAINING_TYPES: dict[str, TrainingType[Any, Any]] = {**FLUX_TYPES, **SDXL_TYPES}


def training_type(config: PipelineConfig) -> TrainingType[Any, Any]:
    """Return the training type of a config."""
    return TRAINING_TYPES[config.type]


def take_text(config: PipelineConfig, device: torch.device, cache: ModelCache) -> TextEncoders:
    """Return the text encoders, frozen, as the only models on the device."""
    spec = training_type(config).text_spec(config, device)
    encoders: TextEncoders = cache.take(device, {"text": spec})["text"]
    return encoders
