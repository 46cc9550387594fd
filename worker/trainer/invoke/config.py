"""Converts a job's config to the library's, field by field.

The library's own models check the result. Datasets are named by their key in the store: the library
reads no image, but gets its batches from ``worker/trainer/invoke/data.py``.
"""

from typing import Any

from tasks.jobs.invoke import PATCHES
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig, SdxlFinetuneConfig
from tasks.stages.trainer_protocol import TrainerRequest

# Our options that the library lacks: they act in our part, or are refused.
_OURS = (
    "trigger_word",
    "single_file_config",
    "quantization",
    "use_ema",
    "ema_decay",
    "deterministic",
    "compile",
    "validate_at_start",
)
_OURS_IN_LOADER = ("caption_dropout",)
_DATASETS = ("dataset", "instance_dataset", "class_dataset")


def library_config(
    request: TrainerRequest, patches: frozenset[str] = frozenset(PATCHES)
) -> dict[str, Any]:
    """Return the library's config of a request, which its models still have to check."""
    config = request.training
    ours = {*_OURS} if isinstance(config, SdxlConfig) else {*_OURS, "vae_model"}
    values: dict[str, Any] = config.model_dump(mode="json", exclude=ours)
    values |= {
        "base_output_dir": request.scratch_dir,
        # Trackers are fed by the train stage; the library makes none of its own.
        "report_to": "tensorboard",
        # The stage removes old checkpoints, once the new one is recorded.
        "max_checkpoints": None,
        "validation_prompts": list(config.sample_prompts),
        "data_loader": _loader(request),
    }
    if config.validate_every_n_steps is None and config.validate_every_n_epochs is None:
        # The library needs one of them even without prompts.
        values["validate_every_n_epochs"] = 1
    if request.device == "cpu":
        values["enable_cpu_offload_during_validation"] = False
    if "float32_weights" in patches and _trains_bfloat16(config):
        # In mixed precision the library keeps trained weights in float32.
        values["mixed_precision"] = "bf16"
    return values


def _loader(request: TrainerRequest) -> dict[str, Any]:
    loader = request.training.loader
    values: dict[str, Any] = loader.model_dump(mode="json", exclude=set(_OURS_IN_LOADER))
    for name in _DATASETS:
        if values.get(name) is not None:
            captioned = getattr(loader, name).has_captions and name == "dataset"
            kind = "IMAGE_CAPTION_DIR_DATASET" if captioned else "IMAGE_DIR_DATASET"
            values[name] = {"type": kind, "dataset_dir": request.dataset_key}
    if loader.aspect_ratio_buckets is not None:
        # The size of validation images.
        values["resolution"] = loader.aspect_ratio_buckets.target_resolution
    if request.training.cache_vae_outputs:
        # The library refuses this, since its cache cannot hold mirrored images; ours holds both.
        values["random_flip"] = False
    return values


def _trains_bfloat16(config: PipelineConfig) -> bool:
    """Whether the model's own weights are trained in bfloat16; those of LoRAs are float32."""
    half = config.weight_dtype == "bfloat16" and config.mixed_precision == "no"
    return isinstance(config, SdxlFinetuneConfig) and half
