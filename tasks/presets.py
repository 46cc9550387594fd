"""Presets: data files named family, method, GPUs x memory, and how they join a job.

Order of precedence: field defaults, then the preset, then the job's own fields.
"""

from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

ALIASES = {
    "flux_1x24gb": "flux_lora_1x24gb",
    "flux_1x40gb": "flux_lora_1x40gb",
    "flux_1x80gb": "flux_lora_1x80gb",
}
"""Other names of presets."""

_FOLDER = files("tasks") / "preset_files"


class UnknownPresetError(KeyError):
    """No preset has this name."""

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        """What there is instead."""
        return f"there is no preset {self.name!r}; there are {', '.join(preset_names())}"


@cache
def preset_names() -> tuple[str, ...]:
    """The names of all presets, without aliases."""
    found = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def preset(name: str) -> dict[str, Any]:
    """A preset's ``training`` values and its ``summary``.

    Raises:
        UnknownPresetError: No preset has this name.
    """
    resolved = ALIASES.get(name, name) if isinstance(name, str) else name
    if resolved not in preset_names():
        raise UnknownPresetError(name)
    values: dict[str, Any] = yaml.safe_load((_FOLDER / f"{resolved}.yaml").read_text("utf-8"))
    return values


def with_preset(document: dict[str, Any]) -> dict[str, Any]:
    """The document with its preset's values where it has none of its own.

    Of two options that exclude each other (``max_train_steps`` and ``max_train_epochs``), the one
    that the job sets puts out the preset's.

    Raises:
        UnknownPresetError: The document names a preset that does not exist.
    """
    if document.get("preset") is None:
        return document
    training = document.get("training")
    base = preset(document["preset"])["training"]
    if training is not None and not isinstance(training, dict):
        return document
    for pair in _EXCLUSIVE:
        if any(option in (training or {}) for option in pair):
            for option in pair:
                base.pop(option, None)
    return {**document, "training": _merged(base, training or {})}


_EXCLUSIVE = (
    ("max_train_steps", "max_train_epochs"),
    ("save_every_n_steps", "save_every_n_epochs"),
    ("validate_every_n_steps", "validate_every_n_epochs"),
)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def get_flux_lora_config(
    model: str = "black-forest-labs/FLUX.1-dev",
    resolution: int = 768,
    batch_size: int = 1,
    learning_rate: float = 1e-4,
    lora_rank: int = 4,
    max_train_steps: int = 1000,
    **kwargs: Any,
) -> dict[str, Any]:
    """A job's ``training`` part for a FLUX LoRA; it validates once it has a data set.

    Args:
        model: The base model.
        resolution: The training images' side in pixels, and the buckets' target.
        batch_size: Samples of one forward pass.
        learning_rate: The transformer's.
        lora_rank: The LoRA's rank.
        max_train_steps: Weight updates.
        **kwargs: Further options, merged into the rest:
            ``data_loader={"dataset": {...}}`` adds the data set.
    """
    sides = (resolution, resolution // 2, resolution * 2)
    divisor = next((d for d in (128, 64, 32) if not any(side % d for side in sides)), 16)
    config = {
        "type": "FLUX_LORA",
        "model": model,
        "lora_rank_dim": lora_rank,
        "train_batch_size": batch_size,
        "max_train_steps": max_train_steps,
        "save_every_n_steps": max(1, max_train_steps // 4),
        "transformer_learning_rate": learning_rate,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 10,
        "weight_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "lora_checkpoint_format": "kohya",
        "timestep_sampler": "shift",
        "discrete_flow_shift": 3.0,
        "data_loader": {
            "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
            "resolution": resolution,
            "aspect_ratio_buckets": {
                "target_resolution": resolution,
                "start_dim": resolution // 2,
                "end_dim": resolution * 2,
                "divisible_by": divisor,
            },
            "dataloader_num_workers": 4,
        },
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": learning_rate},
    }
    return _merged(config, kwargs)


SUPPORTED_TRAINING_TYPES = {"FLUX_LORA": get_flux_lora_config}
"""Training type to the function that makes its config."""
