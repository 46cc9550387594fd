"""The published files of SDXL runs: LoRAs, finetuned models, and the headers of all files.

A ``kohya`` LoRA keeps diffusers' layer names (``lora_unet_down_blocks_1_attentions_0_proj_in``). A
``sd_scripts`` LoRA has the original model's (``lora_unet_input_blocks_4_1_proj_in``): sd-scripts
knows no others.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file

from tasks.base_models.files import base_model_folder, json_object
from tasks.base_models.noise_schedule import VELOCITY_KEY, ZERO_SNR_KEY, noise_schedule
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig
from worker.trainer.base_model import load_vae
from worker.trainer.export.lora_file import (
    Weights,
    clip_path,
    diffusers_old_tensors,
    kohya_tensors,
    peft_tensors,
    write_diffusers_file,
    write_kohya_file,
)
from worker.trainer.export.metadata import MODEL_DIGESTS
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.sdxl.models import load_text_encoders
from worker.trainer.sdxl.single_file import original_layers, single_file_tensors

KOHYA_PREFIXES = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
"""How the names of each model's layers begin in ``kohya`` and ``sd_scripts`` LoRAs."""

_SCHEDULER_FILE = "scheduler/scheduler_config.json"
_UNET_FILE = "diffusion_pytorch_model.safetensors"
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_CPU = torch.device("cpu")


def sdxl_entries(scheduler: DDPMScheduler, kind: str | None) -> dict[str, str]:
    """Return the header's entries of all SDXL files, beside those of all runs.

    Args:
        scheduler: The run's noise scheduler.
        kind: ``lora`` or ``textual-inversion``; None for a whole model.
    """
    velocity = scheduler.config["prediction_type"] == "v_prediction"
    architecture = "stable-diffusion-xl-v1-base"
    return {
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "ss_zero_terminal_snr": str(bool(scheduler.config.get("rescale_betas_zero_snr"))),
        "ss_base_model_version": "sdxl_base_v1-0",
    }


def write_sdxl_lora(
    path: Path,
    weights: Weights,
    config: SdxlLoraConfig,
    alpha: float,
    metadata: Mapping[str, str],
    unet: UNet2DConditionModel,
) -> None:
    """Write a LoRA in the config's form, the same bytes for the same weights.

    Args:
        path: The file.
        weights: The weights; see ``worker.trainer.export.lora_file``.
        config: The run's config.
        alpha: The alpha of all layers.
        metadata: Entries for the header.
        unet: The UNet, for the names of its layers.
    """
    form, rank = config.lora_checkpoint_format, config.lora_rank_dim
    if form in ("kohya", "sd_scripts"):
        renamed = original_layers(unet) if form == "sd_scripts" else {}
        tensors = kohya_tensors(weights, alpha, KOHYA_PREFIXES, renamed)
        module = "networks.lora"
        write_kohya_file(path, tensors, metadata, module=module, rank=rank, alpha=alpha)
    else:
        named = diffusers_old_tensors if form == "diffusers_old" else peft_tensors
        write_diffusers_file(path, named(weights, alpha), metadata, weights)


def write_checkpoint(
    folder: Path,
    name: str,
    config: SdxlFinetuneConfig,
    unet: UNet2DConditionModel,
    weights: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
) -> list[Path]:
    """Write a trained UNet, alone or within its pipeline as configured, in ``save_dtype``.

    Args:
        folder: The folder of the results.
        name: The name of the model's folder or file there.
        config: The run's config.
        unet: The UNet, for its own config.
        weights: The UNet's weights by diffusers' names, float32.
        metadata: Entries for the header of a single file.

    Returns:
        The files, the UNet's weights or the single file first.
    """
    dtype: torch.dtype = getattr(torch, config.save_dtype)
    whole = folder / name
    if config.save_checkpoint_format == "single_file":
        parts = folder / "parts"
        _write_frozen_parts(parts, config)
        found = [_part_weights(parts / part) for part in ("text_encoder", "text_encoder_2", "vae")]
        shutil.rmtree(parts)
        path = folder / f"{name}.safetensors"
        tensors = single_file_tensors(weights, *found) | _noise_markers(config)
        write_safetensors(path, tensors, metadata, dtype=dtype, digests=MODEL_DIGESTS)
        return [path]
    if config.save_checkpoint_format == "full_diffusers":
        _write_frozen_parts(whole, config)
        for path in sorted(whole.rglob("*.safetensors")):
            # Write it again: the order of save_pretrained's header changes from run to run.
            tensors = _published_names(path.parent.name, load_file(path))
            write_safetensors(path, tensors, {"format": "pt"}, dtype=dtype)
    unet.save_config(whole / "unet")
    first = whole / "unet" / _UNET_FILE
    write_safetensors(first, weights, {"format": "pt"}, dtype=dtype)
    rest = (path for path in whole.rglob("*") if path.is_file() and path != first)
    return [first, *sorted(rest)]


def _write_frozen_parts(folder: Path, config: SdxlFinetuneConfig) -> None:
    """Write the base model without its UNet as a diffusers folder."""
    # Loaded in the precision of the files: from the config of each encoder, loaders read it.
    as_saved = config.model_copy(update={"weight_dtype": config.save_dtype})
    pipeline: Any = load_text_encoders(as_saved, _CPU)
    pipeline.register_modules(vae=load_vae(config, _CPU))
    pipeline.to(getattr(torch, config.save_dtype))
    pipeline.save_pretrained(folder, safe_serialization=True)
    base = base_model_folder(config, ("scheduler", *_TOKENIZERS))
    # transformers 4, which InvokeAI uses, needs files of the tokenizers that 5 does not write.
    for path in (path for part in _TOKENIZERS for path in sorted((base / part).iterdir())):
        if path.suffix in (".json", ".txt"):
            shutil.copyfile(path, folder / path.parent.name / path.name)
    scheduler = json_object(base, _SCHEDULER_FILE)
    # Not every scheduler has an option that is off.
    values = noise_schedule(config).scheduler_values
    scheduler |= {name: value for name, value in values.items() if value or name in scheduler}
    index = json_object(folder, "model_index.json")
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "scheduler").mkdir()
    for name, document in ((_SCHEDULER_FILE, scheduler), ("model_index.json", index)):
        (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")


def _noise_markers(config: SdxlFinetuneConfig) -> dict[str, torch.Tensor]:
    """Return the empty tensors by which a file says that its UNet predicts velocities."""
    schedule = noise_schedule(config)
    markers = {
        VELOCITY_KEY: schedule.prediction_type == "v_prediction",
        ZERO_SNR_KEY: schedule.zero_terminal_snr,
    }
    return {name: torch.empty(0) for name, is_set in markers.items() if is_set}


def _part_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return _published_names(folder.name, tensors)


def _published_names(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a part's tensors by their names in published files."""
    is_clip = part.startswith("text_encoder")
    return {clip_path(name) if is_clip else name: tensor for name, tensor in tensors.items()}
