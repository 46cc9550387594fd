"""Presets: data files named by family, method and GPUs x memory, and their merge into a job.

Order of precedence, lowest first: field defaults, the preset, the job's own options.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any

from tasks.escaping import quoted
from tasks.jobs.document import read_document
from tasks.jobs.problems import did_you_mean, similar

ALIASES = {
    "flux_1x24gb": "flux_lora_1x24gb",
    "flux_1x40gb": "flux_lora_1x40gb",
    "flux_1x80gb": "flux_lora_1x80gb",
}
"""Alternative names of presets."""

FAST_SUFFIX = "_fast"
"""The end of the names of presets that use the memory of their class."""

# Of each pair a job sets one.
_EXCLUSIVE = (
    ("max_train_steps", "max_train_epochs"),
    ("save_every_n_steps", "save_every_n_epochs"),
    ("validate_every_n_steps", "validate_every_n_epochs"),
)
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
PRESET_FILES = files("tasks.jobs") / "preset_files"
"""The folder of the presets, one file each."""


class UnknownPresetError(KeyError):
    """No preset has this name."""

    def __init__(self, name: object) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        """Return the message, with the names of all presets."""
        names = ", ".join(preset_names())
        hint = did_you_mean(self.name, preset_names())
        return f"there is no preset {quoted(self.name)}; the presets are {names}{hint}"

    @property
    def similar(self) -> str | None:
        """The preset that is likely meant."""
        return next(iter(similar(self.name, preset_names())), None)


@cache
def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, without aliases."""
    names = (entry.name for entry in PRESET_FILES.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def preset(name: str) -> dict[str, Any]:
    """Return a preset's ``training`` values, its ``title`` and its ``summary``.

    Raises:
        UnknownPresetError: No preset has this name.
    """
    resolved = ALIASES.get(name, name) if isinstance(name, str) else name
    if resolved not in preset_names():
        raise UnknownPresetError(name)
    return deepcopy(_values_in(f"{resolved}.yaml"))


@cache
def _values_in(file_name: str) -> dict[str, Any]:
    values: dict[str, Any] = read_document((PRESET_FILES / file_name).read_bytes()).values
    return values


def with_preset(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with its preset's values for the options that it does not set.

    If the job sets one of two exclusive options (``max_train_steps`` and ``max_train_epochs``), it
    replaces the preset's other one. If the job uses another optimizer than the preset, the preset's
    optimizer settings and learning rates do not apply.

    Args:
        document: A job with a mapping ``training``. It is not changed.

    Raises:
        UnknownPresetError: The document names a preset that does not exist.
    """
    if document.get("preset") is None:
        return document
    base = preset(document["preset"])["training"]
    return {**document, "training": merge_training(base, document["training"])}


def merge_training(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return two ``training`` parts merged, without the base's values that contradict the other."""
    dropped = {name for pair in _EXCLUSIVE if any(n in over for n in pair) for name in pair}
    if over.get("train_transformer") is False:
        # A rate of what is not trained would be an option without effect.
        dropped.add("transformer_learning_rate")
    optimizer = over.get("optimizer")
    if isinstance(optimizer, dict):
        kind = base.get("optimizer", {}).get("optimizer_type", "AdamW")
        # Rates differ by optimizer: Prodigy's is about 1, AdamW's about 1e-4.
        if optimizer.get("optimizer_type", kind) != kind:
            dropped |= {"optimizer", *(n for n in base if n.endswith("_learning_rate"))}
    return _merged({name: value for name, value in base.items() if name not in dropped}, over)


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
    """Return a job's ``training`` part for a FLUX LoRA; it is valid once it has a dataset.

    Args:
        model: The base model.
        resolution: The training images' side in pixels, and the buckets' target.
        batch_size: Samples of one forward pass.
        learning_rate: The transformer's learning rate with AdamW; another optimizer in ``kwargs``
            has its own.
        lora_rank: The LoRA's rank.
        max_train_steps: Weight updates.
        **kwargs: Further options, merged into the rest:
            ``data_loader={"dataset": {...}}`` adds the dataset.
    """
    config = {
        **_common("FLUX_LORA", model, batch_size, max_train_steps),
        "lora_rank_dim": lora_rank,
        "transformer_learning_rate": learning_rate,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 10,
        "lora_checkpoint_format": "kohya",
        "timestep_sampler": "shift",
        "discrete_flow_shift": 3.0,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": learning_rate},
    }
    config["data_loader"] = _loader("IMAGE_CAPTION_FLUX_DATA_LOADER", resolution, min_step=16)
    return merge_training(config, kwargs)


def get_sdxl_lora_config(
    model: str = _SDXL,
    resolution: int = 1024,
    batch_size: int = 1,
    learning_rate: float = 1e-4,
    lora_rank: int = 16,
    max_train_steps: int = 1000,
    **kwargs: Any,
) -> dict[str, Any]:
    """Return a job's ``training`` part for an SDXL LoRA; it is valid once it has a dataset.

    Args:
        model: The base model.
        resolution: The training images' side in pixels, and the buckets' target.
        batch_size: Samples of one forward pass.
        learning_rate: The learning rate of all trained models, with AdamW.
        lora_rank: The LoRA's rank.
        max_train_steps: Weight updates.
        **kwargs: Further options, merged into the rest:
            ``data_loader={"dataset": {...}}`` adds the dataset.
    """
    config = {
        **_common("SDXL_LORA", model, batch_size, max_train_steps),
        "lora_rank_dim": lora_rank,
        "lora_checkpoint_format": "kohya",
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": learning_rate},
    }
    config["data_loader"] = _loader("IMAGE_CAPTION_SD_DATA_LOADER", resolution)
    return merge_training(config, kwargs)


def get_sdxl_textual_inversion_config(
    placeholder_token: str,
    initializer_token: str | None = None,
    model: str = _SDXL,
    resolution: int = 1024,
    batch_size: int = 1,
    learning_rate: float = 5e-3,
    max_train_steps: int = 2000,
    **kwargs: Any,
) -> dict[str, Any]:
    """Return a job's ``training`` part for SDXL textual inversion; it is valid with a dataset.

    Args:
        placeholder_token: The new word.
        initializer_token: The word it starts from. None: ``kwargs`` has one of the other two
            starts.
        model: The base model.
        resolution: The training images' side in pixels, and the buckets' target.
        batch_size: Samples of one forward pass.
        learning_rate: The embeddings' learning rate, with AdamW.
        max_train_steps: Weight updates.
        **kwargs: Further options, merged into the rest:
            ``data_loader={"dataset": {...}, "caption_preset": "object"}`` adds the dataset.
    """
    config = {
        **_common("SDXL_TEXTUAL_INVERSION", model, batch_size, max_train_steps),
        "placeholder_token": placeholder_token,
        "initializer_token": initializer_token,
        # Decay would pull the embeddings to zero.
        "optimizer": {
            "optimizer_type": "AdamW",
            "learning_rate": learning_rate,
            "weight_decay": 0.0,
        },
    }
    config["data_loader"] = _loader("TEXTUAL_INVERSION_SD_DATA_LOADER", resolution)
    return merge_training(config, kwargs)


def get_sdxl_finetune_config(
    model: str = _SDXL,
    resolution: int = 1024,
    batch_size: int = 1,
    learning_rate: float = 1e-5,
    max_train_steps: int = 5000,
    **kwargs: Any,
) -> dict[str, Any]:
    """Return a job's ``training`` part for an SDXL finetune; it is valid once it has a dataset.

    Args:
        model: The base model.
        resolution: The training images' side in pixels, and the buckets' target.
        batch_size: Samples of one forward pass.
        learning_rate: The UNet's learning rate, with AdamW.
        max_train_steps: Weight updates.
        **kwargs: Further options, merged into the rest:
            ``data_loader={"dataset": {...}}`` adds the dataset.
    """
    config = {
        **_common("SDXL_FINETUNE", model, batch_size, max_train_steps),
        "cache_text_encoder_outputs": True,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": learning_rate},
    }
    config["data_loader"] = _loader("IMAGE_CAPTION_SD_DATA_LOADER", resolution)
    return merge_training(config, kwargs)


def _common(
    training_type: str, model: str, batch_size: int, max_train_steps: int
) -> dict[str, Any]:
    return {
        "type": training_type,
        "model": model,
        "train_batch_size": batch_size,
        "max_train_steps": max_train_steps,
        "save_every_n_steps": max(1, max_train_steps // 4),
        "weight_dtype": "bfloat16",
        "gradient_checkpointing": True,
    }


def _loader(loader_type: str, resolution: int, min_step: int = 8) -> dict[str, Any]:
    sides = (resolution, resolution // 2, resolution * 2)
    steps = (step for step in (128, 64, 32, 16) if not any(side % step for side in sides))
    step = next(steps, min_step)
    return {
        "type": loader_type,
        "resolution": resolution,
        "aspect_ratio_buckets": {
            "target_resolution": resolution,
            "start_dim": resolution // 2 // step * step,
            "end_dim": resolution * 2,
            "divisible_by": step,
        },
        "dataloader_num_workers": 4,
    }


SUPPORTED_TRAINING_TYPES: dict[str, Callable[..., dict[str, Any]]] = {
    "SDXL_LORA": get_sdxl_lora_config,
    "SDXL_TEXTUAL_INVERSION": get_sdxl_textual_inversion_config,
    "SDXL_FINETUNE": get_sdxl_finetune_config,
    "FLUX_LORA": get_flux_lora_config,
}
"""The function that makes each training type's config."""
