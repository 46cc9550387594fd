"""The training types of the SDXL family."""

from typing import Any

import torch

from tasks.jobs.sdxl import SdxlConfig, SdxlFinetuneConfig, SdxlLoraConfig
from worker.trainer.base_model import existing_files
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.sdxl.finetune_recipe import SdxlFinetune
from worker.trainer.sdxl.lora_recipe import SdxlLora
from worker.trainer.sdxl.models import SdxlModels, frozen_text_spec, take_models
from worker.trainer.sdxl.sampler import SdxlSampler
from worker.trainer.sdxl.textual_inversion import SdxlTextualInversion, add_embeddings
from worker.trainer.training_type import TrainingType


def lora_text_spec(config: SdxlLoraConfig, device: torch.device) -> ModelSpec:
    """Describe the text encoders with the embeddings that captions may use."""
    embeddings = config.base_embeddings
    return frozen_text_spec(
        config,
        device,
        existing_files(*embeddings.values()),
        tuple(embeddings.items()),
        lambda text: add_embeddings(text, embeddings),
    )


def take_lora_models(config: SdxlLoraConfig, device: torch.device, cache: ModelCache) -> SdxlModels:
    """Return the models of a LoRA run."""
    return take_models(config, device, cache, lambda: lora_text_spec(config, device))


def take_frozen_models(config: SdxlConfig, device: torch.device, cache: ModelCache) -> SdxlModels:
    """Return the models of a textual-inversion run."""
    return take_models(config, device, cache, lambda: frozen_text_spec(config, device))


def take_finetune_models(
    config: SdxlFinetuneConfig, device: torch.device, cache: ModelCache
) -> SdxlModels:
    """Return the models of a finetune, the UNet in float32: its own weights are trained."""
    return take_models(
        config, device, cache, lambda: frozen_text_spec(config, device), torch.float32
    )


SDXL_TYPES: dict[str, TrainingType[Any, Any]] = {
    "SDXL_LORA": TrainingType(take_lora_models, lora_text_spec, SdxlLora, SdxlSampler),
    "SDXL_TEXTUAL_INVERSION": TrainingType(
        take_frozen_models,
        frozen_text_spec,
        lambda config, models, _rng: SdxlTextualInversion(config, models),
        SdxlSampler,
        changed_parts=("text",),
    ),
    "SDXL_FINETUNE": TrainingType(
        take_finetune_models,
        frozen_text_spec,
        lambda config, models, _rng: SdxlFinetune(config, models),
        SdxlSampler,
        changed_parts=("denoiser",),
    ),
}
