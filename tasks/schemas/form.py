"""The fields of a front end's form, and the job options that each one sets.

A field without an option in a training type is not sent for that type. Options come from the job
models; only the names of the form are defined here.
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
    """An option that a field sets.

    Attributes:
        path: The option's path below ``training``.
        factor: Factor of a number, rounded up; None sets the value itself.
    """

    path: str
    factor: float | None = None


@dataclass(frozen=True)
class FormField:
    """A field of the form.

    Attributes:
        name: Name in the form.
        targets: The options that it sets; the first one decides type, default and meaning.
        type: Type in TypeScript, if it is not the option's own.
    """

    name: str
    targets: tuple[Target, ...]
    type: str | None = None


def _field(name: str, *paths: str) -> FormField:
    return FormField(name, tuple(Target(path) for path in paths))


INTERFACES: dict[str, tuple[FormField, ...]] = {
    "ModelConfig": (_field("trainingType", "type"), _field("baseModel", "model")),
    "BasicTrainingConfig": (
        FormField(
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
        FormField(
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
"""The parts of the form, each an interface in TypeScript."""

_MEMORY_FIELDS = (
    _field("batchSize", "train_batch_size"),
    _field("gradientAccumulation", "gradient_accumulation_steps"),
    _field("weightDtype", "weight_dtype"),
    _field("gradientCheckpointing", "gradient_checkpointing"),
    _field("cacheVaeOutputs", "cache_vae_outputs"),
)
# Options that a form always sets, before its fields. 64 divides the sides of all buckets of every
# resolution above. The default of FLUX's weight_dtype is float16, whose range it leaves.
_SET = {
    training_type: {
        "type": training_type,
        "data_loader.type": loader,
        f"{_BUCKETS}.divisible_by": 64,
        "weight_dtype": "bfloat16",
    }
    for training_type, loader in (
        ("FLUX_LORA", "IMAGE_CAPTION_FLUX_DATA_LOADER"),
        ("SDXL_LORA", "IMAGE_CAPTION_SD_DATA_LOADER"),
        ("SDXL_TEXTUAL_INVERSION", "TEXTUAL_INVERSION_SD_DATA_LOADER"),
        ("SDXL_FINETUNE", "IMAGE_CAPTION_SD_DATA_LOADER"),
    )
}


def memory_presets() -> dict[str, dict[str, Any]]:
    """Return the values of the form's fields in each FLUX preset, by the preset's alias."""
    return {
        name: {
            field.name: preset(name)["training"][field.targets[0].path] for field in _MEMORY_FIELDS
        }
        for name in ALIASES
    }


@cache
def form_table() -> dict[str, Any]:
    """Return, by training type, the options that are set first and the targets of the fields."""
    fields = [field for part in INTERFACES.values() for field in part] + list(_MEMORY_FIELDS)
    return {
        name: {"set": _SET[name], "fields": _fields_of(options, fields)}
        for name, options in training_options().items()
    }


def form_file() -> str:
    """Return the table and the presets as JSON, for front ends in any language."""
    document = {"training_types": form_table(), "memory_presets": memory_presets()}
    return json.dumps(document, indent=2) + "\n"


def _fields_of(options: TypeOptions, fields: list[FormField]) -> dict[str, list[dict[str, Any]]]:
    paths = {option.path for option in options.options} - {"type"}
    targets = {
        field.name: [_target(target) for target in field.targets if target.path in paths]
        for field in fields
    }
    return {name: listed for name, listed in targets.items() if listed}


def _target(target: Target) -> dict[str, Any]:
    factor = {} if target.factor is None else {"factor": target.factor}
    return {"path": target.path, **factor}
