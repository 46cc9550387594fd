"""The jobs that are traced: every preset, and shapes that differ in what decides memory."""

from typing import Any

from tasks.jobs.flux_lora import ATTENTION_TARGETS
from tasks.jobs.job import TrainingConfig, parse_job
from tasks.jobs.presets import preset_names

Options = dict[str, Any]

_CACHED: Options = {"cache_text_encoder_outputs": True, "cache_vae_outputs": True}
_LIVE: Options = {"cache_text_encoder_outputs": False, "cache_vae_outputs": False}
_LIVE_VAE: Options = {"cache_vae_outputs": False}
_WHOLE: Options = {"gradient_checkpointing": False}
_ATTENTION: Options = {"flux_lora_target_modules": sorted(ATTENTION_TARGETS)}
_BITS: Options = {"optimizer": {"optimizer_type": "AdamW", "use_8bit": True}}
_PRODIGY: Options = {"optimizer": {"optimizer_type": "Prodigy"}}
_ADAFACTOR: Options = {"optimizer": {"optimizer_type": "Adafactor"}}
_MIXED: Options = {"weight_dtype": "float32", "mixed_precision": "bf16"}
_VALIDATION: Options = {"validation_prompts": ["a cat"], "validate_every_n_steps": 1}
_TRAINED_TEXT: Options = {"train_text_encoder": True, "cache_text_encoder_outputs": False}
_FEED_FORWARD: Options = {
    "flux_lora_target_modules": ["ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out"]
}
_UNET_ATTENTION: Options = {"unet_lora_target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}


def _size(resolution: int, batch_size: int = 1, blocks: int | None = None) -> Options:
    """Return the options of a size; ``blocks`` is the number of checkpointed ones, None for all."""
    chosen = True if blocks is None else blocks
    size = {"resolution": resolution, "train_batch_size": batch_size}
    return {**size, "gradient_checkpointing": chosen}


_FLUX: dict[str, Options] = {
    "512": _size(512),
    "1024": _size(1024),
    "1024, batch 2": _size(1024, 2),
    "1536": _size(1536),
    "768, batch 4, VAE": _size(768, 4) | _LIVE_VAE,
    "1024, VAE": _size(1024) | _LIVE_VAE,
    "768, encoders": _size(768) | _LIVE,
    "512, float16, encoders": _size(512) | _LIVE | {"weight_dtype": "float16"},
    "512, float32": _size(512) | {"weight_dtype": "float32"},
    "512, float32 in bfloat16": _size(512) | _MIXED,
    "512, float32 in bfloat16, no checkpointing": _size(512, 1, 0) | _MIXED,
    "512, text encoder trained": _size(512) | _TRAINED_TEXT,
    "1024, validation": _size(1024) | _VALIDATION,
    "768, rank 128": _size(768) | {"lora_rank_dim": 128},
    "768, rank 64, 8-bit AdamW": _size(768) | {"lora_rank_dim": 64} | _BITS,
    "1024, rank 64, Prodigy": _size(1024) | {"lora_rank_dim": 64} | _PRODIGY,
    "512, no checkpointing": _size(512, 1, 0),
    "1024, no checkpointing": _size(1024, 1, 0),
    "1024, 20 blocks": _size(1024, 1, 20),
    "768, batch 2, 40 blocks": _size(768, 2, 40),
    "512, batch 4, 10 blocks": _size(512, 4, 10),
    "512, attention, no checkpointing": _size(512, 1, 0) | _ATTENTION,
    "768, batch 2, attention, 30 blocks": _size(768, 2, 30) | _ATTENTION,
    "512, attention, float16, no checkpointing": _size(512, 1, 0)
    | _ATTENTION
    | {"weight_dtype": "float16"},
    "512, feed-forward, no checkpointing": _size(512, 1, 0) | _FEED_FORWARD,
    "1024, nf4": _size(1024) | {"quantization": "nf4"},
    "512, nf4, no checkpointing": _size(512, 1, 0) | {"quantization": "nf4"},
    "1024, int8": _size(1024) | {"quantization": "int8"},
    "512, int8, no checkpointing": _size(512, 1, 0) | {"quantization": "int8"},
    "768, batch 2, fp8, 20 blocks": _size(768, 2, 20) | {"quantization": "fp8"},
}
_SDXL_LORA: dict[str, Options] = {
    "1024": _size(1024),
    "1024, batch 4": _size(1024, 4),
    "2048": _size(2048),
    "1024, batch 4, VAE": _size(1024, 4) | _LIVE_VAE,
    "1024, batch 2, encoders": _size(1024, 2) | _LIVE,
    "1024, float16": _size(1024) | {"weight_dtype": "float16"},
    "1024, float32": _size(1024) | {"weight_dtype": "float32"},
    "768, batch 4, text encoders trained": _size(768, 4) | _TRAINED_TEXT,
    "768, text encoders trained, no checkpointing": _size(768, 1, 0) | _TRAINED_TEXT,
    "1024, rank 64, Prodigy": _size(1024) | {"lora_rank_dim": 64} | _PRODIGY,
    "768, batch 4, no checkpointing": _size(768, 4, 0),
    "1024, no checkpointing": _size(1024, 1, 0),
    "1024, batch 4, no checkpointing": _size(1024, 4, 0),
    "1024, attention, no checkpointing": _size(1024, 1, 0) | _UNET_ATTENTION,
    "1024, 3 blocks": _size(1024, 1, 3),
    "768, batch 2, 5 blocks": _size(768, 2, 5),
}
_TEXTUAL_INVERSION: dict[str, Options] = {
    "768, batch 4": _size(768, 4),
    "1024, VAE, no checkpointing": _size(1024, 1, 0) | _LIVE_VAE,
    "1024, validation": _size(1024) | _VALIDATION,
}
_FINETUNE: dict[str, Options] = {
    "1024, batch 2, 8-bit AdamW, average": _size(1024, 2) | _BITS | {"use_ema": True},
    "768, average, 2 accumulated": _size(768) | {"use_ema": True, "gradient_accumulation_steps": 2},
    "1024, Adafactor, no checkpointing": _size(1024, 1, 0) | _ADAFACTOR,
    "512, Prodigy": _size(512) | _PRODIGY,
    "1024, Adafactor, 4 blocks": _size(1024, 1, 4) | _ADAFACTOR,
}
_OF_TYPE: dict[str, tuple[Options, str, dict[str, Options]]] = {
    "FLUX_LORA": (_CACHED | {"lora_rank_dim": 16}, "IMAGE_CAPTION_FLUX_DATA_LOADER", _FLUX),
    "SDXL_LORA": (
        _CACHED | {"lora_rank_dim": 16, "train_text_encoder": False},
        "IMAGE_CAPTION_SD_DATA_LOADER",
        _SDXL_LORA,
    ),
    "SDXL_TEXTUAL_INVERSION": (
        {"cache_vae_outputs": True, "placeholder_token": "<x>", "initializer_token": "cat"},
        "TEXTUAL_INVERSION_SD_DATA_LOADER",
        _TEXTUAL_INVERSION,
    ),
    "SDXL_FINETUNE": (_CACHED, "IMAGE_CAPTION_SD_DATA_LOADER", _FINETUNE),
}
COMPARED = (
    "FLUX_LORA 512",
    "FLUX_LORA 512, no checkpointing",
    "FLUX_LORA 1024",
    "FLUX_LORA 1024, no checkpointing",
    "SDXL_LORA 1024",
    "SDXL_LORA 1024, no checkpointing",
    "SDXL_LORA 1024, batch 4",
    "SDXL_LORA 1024, batch 4, no checkpointing",
    "sdxl_finetune_1x40gb",
    "SDXL_FINETUNE 1024, Adafactor, no checkpointing",
)
"""Jobs whose work is compared with that of other versions and programs."""

SCRIPTS = {
    "FLUX_LORA": "dreambooth/train_dreambooth_lora_flux.py",
    "SDXL_LORA": "text_to_image/train_text_to_image_lora_sdxl.py",
}
"""diffusers' scripts by training type, in the folder ``examples`` of its repository."""

_DATASET = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "."}
_IMAGES = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "."}


def traced_configs() -> dict[str, TrainingConfig]:
    """Return the config of each traced job by its name: the presets first."""
    configs = {name: _preset_config(name) for name in preset_names()}
    for kind, (base, loader, shapes) in _OF_TYPE.items():
        for name, options in shapes.items():
            configs[f"{kind} {name}"] = _config(kind, loader, base | options)
    return configs


def _preset_config(name: str) -> TrainingConfig:
    training: Options = {"data_loader": {"dataset": _DATASET}}
    if "textual_inversion" in name:
        training = {"placeholder_token": "<x>", "initializer_token": "cat"}
        training["data_loader"] = {"dataset": _IMAGES, "caption_preset": "object"}
    return parse_job({"preset": name, "training": training}).training


def _config(kind: str, loader_type: str, options: Options) -> TrainingConfig:
    chosen = dict(options)
    loader: Options = {"type": loader_type, "resolution": chosen.pop("resolution")}
    loader["dataset"] = _DATASET
    if kind == "SDXL_TEXTUAL_INVERSION":
        loader |= {"dataset": _IMAGES, "caption_preset": "object"}
    steps = {"max_train_steps": 1, "save_every_n_steps": 1, "weight_dtype": "bfloat16"}
    training = {"type": kind, **steps, **chosen, "data_loader": loader}
    return parse_job({"training": training}).training
