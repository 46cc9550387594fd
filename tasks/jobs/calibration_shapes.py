"""The configs that ``training-worker calibrate`` measures, called shapes.

Each shape differs from the first in an option that makes one of the estimate's constants count, so
that a least-squares fit can determine them all.
"""

from typing import Any

from pydantic import JsonValue

from tasks.jobs.flux_lora import ATTENTION_TARGETS
from tasks.jobs.job import TrainingConfig, parse_job

Options = dict[str, JsonValue]

STEPS = 2
"""The first step makes the optimizer's state; the second holds it beside the activations."""

_COMMON: Options = {
    "weight_dtype": "bfloat16",
    "gradient_checkpointing": True,
    "cache_text_encoder_outputs": True,
    "cache_vae_outputs": True,
    "train_batch_size": 1,
    "resolution": 512,
}
_ATTENTION: list[JsonValue] = [*sorted(ATTENTION_TARGETS)]
_SHAPES: dict[str, list[Options]] = {
    "FLUX_LORA": [
        {},
        {"resolution": 1024},
        {"resolution": 1024, "train_batch_size": 2},
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": False, "resolution": 640},
        {
            "gradient_checkpointing": False,
            "flux_lora_target_modules": _ATTENTION,
        },
    ],
    "SDXL_LORA": [
        {},
        {"resolution": 1024},
        {"resolution": 1024, "train_batch_size": 2},
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": False, "resolution": 768},
    ],
}
TYPES = tuple(_SHAPES)
_OF_TYPE: dict[str, Options] = {
    "FLUX_LORA": {"lora_rank_dim": 16},
    "SDXL_LORA": {"lora_rank_dim": 16, "train_text_encoder": False},
}
_LOADERS = {
    "FLUX_LORA": "IMAGE_CAPTION_FLUX_DATA_LOADER",
    "SDXL_LORA": "IMAGE_CAPTION_SD_DATA_LOADER",
}


def shapes(training_type: str, model: str | None) -> list[tuple[Options, TrainingConfig]]:
    """Return the shapes of a type: the options that differ from the first shape, and the config.

    Args:
        training_type: One of ``TYPES``.
        model: The base model; None is the type's default.
    """
    base = _COMMON | _OF_TYPE[training_type]
    return [
        (options, _config(training_type, model, base | options))
        for options in _SHAPES[training_type]
    ]


def described(options: Options) -> str:
    """Return a short description of a shape's options."""
    if not options:
        return "512 px, batch 1, rank 16, gradient_checkpointing, encoder outputs cached"
    return ", ".join(
        f"{name} {'of the attention' if value == _ATTENTION else value}"
        for name, value in options.items()
    )


def _config(training_type: str, model: str | None, options: Options) -> TrainingConfig:
    chosen = dict(options)
    loader: dict[str, Any] = {
        "type": _LOADERS[training_type],
        # Never read: the calibration generates images.
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "."},
        "resolution": chosen.pop("resolution"),
    }
    named = {} if model is None else {"model": model}
    steps = {"max_train_steps": STEPS, "save_every_n_steps": STEPS, "seed": 1}
    training = {"type": training_type, **named, **steps, **chosen, "data_loader": loader}
    return parse_job({"training": training}).training
