"""A job's config as the library's own, field by field.

Knows names and values only; the library's models check what comes out. Datasets are named by their
key in the store: the library reads no image, cached or not, but gets its batches from
``worker/trainer/invoke/data.py``.
"""

from typing import Any

from tasks.jobs.invoke import PATCHES
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlFinetuneConfig
from tasks.stages.trainer_protocol import TrainerRequest

# Options of ours that the library has none of: they act in our part, or are refused.
_OURS = ("single_file_config", "quantization", "use_ema", "ema_decay")
_OURS_IN_LOADER = ("caption_dropout",)
_DATASETS = ("dataset", "instance_dataset", "class_dataset")


def library_config(
    request: TrainerRequest, patches: frozenset[str] = frozenset(PATCHES)
) -> dict[str, Any]:
    """The library's config of a request, to be checked by its models."""
    config = request.training
    values: dict[str, Any] = config.model_dump(mode="json", exclude=set(_OURS))
    values |= {
        "base_output_dir": request.scratch_dir,
        # The stage removes old checkpoints, once the new one is recorded.
        "max_checkpoints": None,
        "data_loader": _loader(request),
    }
    if config.validate_every_n_steps is None and config.validate_every_n_epochs is None:
        # It wants one of them even where there is nothing to make.
        values["validate_every_n_epochs"] = 1
    if request.device == "cpu":
        values["enable_cpu_offload_during_validation"] = False
    if "float32_weights" in patches and _trains_bfloat16(config):
        # It keeps trained weights in float32 where it computes in mixed precision.
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
        # Its own cache cannot hold mirrored images, and it refuses this; ours holds both.
        values["random_flip"] = False
    return values


def _trains_bfloat16(config: PipelineConfig) -> bool:
    """Whether whole weights are trained in bfloat16; LoRAs have float32 ones of their own."""
    half = config.weight_dtype == "bfloat16" and config.mixed_precision == "no"
    return isinstance(config, SdxlFinetuneConfig) and half
