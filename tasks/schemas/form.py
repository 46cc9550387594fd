"""The fields of a front end's form, and where each goes in a job's ``training`` part.

A field that a training type has no option for is not sent for that type. Which options there are
is read from the job models; only the names of the form are written down here.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from tasks.jobs.options import TypeOptions, training_options
from tasks.jobs.presets import ALIASES, preset

_BUCKETS = "data_loader.aspect_ratio_buckets"


@dataclass(frozen=True)
class Target:
    """Where a field's value goes.

    Attributes:
        path: Below ``training``.
        times: What a number is multiplied with on its way, rounded up.
    """

    path: str
    times: float | None = None


@dataclass(frozen=True)
class Field:
    """A field of the form.

    Attributes:
        name: In the form.
        targets: Where it goes; the first one says its type, default and meaning.
        type: In TypeScript, where it is not the option's own.
    """

    name: str
    targets: tuple[Target, ...]
    type: str | None = None


def _field(name: str, *paths: str) -> Field:
    return Field(name, tuple(Target(path) for path in paths))


INTERFACES: dict[str, tuple[Field, ...]] = {
    "ModelConfig": (_field("trainingType", "type"), _field("baseModel", "model")),
    "BasicTrainingConfig": (
        Field(
            "resolution",
            (
                Target("data_loader.resolution"),
                Target(f"{_BUCKETS}.target_resolution"),
                Target(f"{_BUCKETS}.start_dim", 0.5),
                Target(f"{_BUCKETS}.end_dim", 2),
            ),
            "512 | 768 | 1024",
        ),
        _field("batchSize", "train_batch_size"),
        Field(
            "maxTrainSteps",
            (Target("max_train_steps"), Target("save_every_n_steps", 0.25)),
        ),
        _field("learningRate", "transformer_learning_rate", "optimizer.learning_rate"),
        _field("loraRank", "lora_rank_dim"),
    ),
    "FluxAdvancedConfig": (
        _field("loraCheckpointFormat", "lora_checkpoint_format"),
        _field("trainTransformer", "train_transformer"),
        _field("trainTextEncoder", "train_text_encoder"),
        _field("weightDtype", "weight_dtype"),
        _field("gradientCheckpointing", "gradient_checkpointing"),
        _field("cacheTextEncoderOutputs", "cache_text_encoder_outputs"),
        _field("cacheVaeOutputs", "cache_vae_outputs"),
        _field("timestepSampler", "timestep_sampler"),
        _field("discreteFlowShift", "discrete_flow_shift"),
        _field("guidanceScale", "guidance_scale"),
        _field("lrScheduler", "lr_scheduler"),
        _field("lrWarmupSteps", "lr_warmup_steps"),
    ),
}
"""The form's parts."""

_MEMORY_FIELDS = (
    _field("batchSize", "train_batch_size"),
    _field("gradientAccumulation", "gradient_accumulation_steps"),
    _field("weightDtype", "weight_dtype"),
    _field("gradientCheckpointing", "gradient_checkpointing"),
    _field("cacheVaeOutputs", "cache_vae_outputs"),
)
# What a form always sets. 64 divides the sides of all buckets of every resolution above.
_SET = {
    training_type: {
        "type": training_type,
        "data_loader.type": loader,
        f"{_BUCKETS}.divisible_by": 64,
    }
    for training_type, loader in (
        ("FLUX_LORA", "IMAGE_CAPTION_FLUX_DATA_LOADER"),
        ("SDXL_LORA", "IMAGE_CAPTION_SD_DATA_LOADER"),
        ("SDXL_TEXTUAL_INVERSION", "TEXTUAL_INVERSION_SD_DATA_LOADER"),
        ("SDXL_FINETUNE", "IMAGE_CAPTION_SD_DATA_LOADER"),
    )
}


def memory_presets() -> dict[str, dict[str, Any]]:
    """What the form shows of each FLUX preset, by the name it has there."""
    return {
        name: {
            field.name: preset(name)["training"][field.targets[0].path] for field in _MEMORY_FIELDS
        }
        for name in ALIASES
    }


@cache
def table() -> dict[str, Any]:
    """Training type to what a form sets, and field to where its value goes."""
    fields = [field for part in INTERFACES.values() for field in part] + list(_MEMORY_FIELDS)
    return {
        name: {"set": _SET[name], "fields": _fields_of(options, fields)}
        for name, options in training_options().items()
    }


def form_file() -> str:
    """The table and the presets, for front ends in any language."""
    document = {"training_types": table(), "memory_presets": memory_presets()}
    return json.dumps(document, indent=2) + "\n"


def _fields_of(options: TypeOptions, fields: list[Field]) -> dict[str, list[dict[str, Any]]]:
    there = {option.path for option in options.options} - {"type"}
    found = {
        field.name: [
            {"path": target.path, **({} if target.times is None else {"times": target.times})}
            for target in field.targets
            if target.path in there
        ]
        for field in fields
    }
    return {name: targets for name, targets in found.items() if targets}
