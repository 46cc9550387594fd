"""The training types of the FLUX family."""

from typing import Any

from worker.trainer.flux.lora_recipe import FluxLora
from worker.trainer.flux.models import take_models, text_spec
from worker.trainer.flux.sampler import FluxSampler
from worker.trainer.training_type import TrainingType

FLUX_TYPES: dict[str, TrainingType[Any, Any]] = {
    "FLUX_LORA": TrainingType(take_models, text_spec, FluxLora, FluxSampler),
}
