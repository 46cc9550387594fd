"""A finetuned SDXL as others load it: a diffusers folder, or one file."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file

from tasks.base_models.files import base_model_folder
from tasks.jobs.sdxl import SdxlFinetuneConfig
from worker.trainer.encoders import load_vae
from worker.trainer.export.clip_names import clip_path
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.sdxl.models import load_sdxl_text_encoders
from worker.trainer.sdxl.tensor_names import single_file_tensors

_UNET_FILE = "diffusion_pytorch_model.safetensors"
_CPU = torch.device("cpu")


def write_checkpoint(
    folder: Path,
    name: str,
    config: SdxlFinetuneConfig,
    unet: UNet2DConditionModel,
    weights: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
) -> list[Path]:
    """Write a trained UNet, and what the config wants around it, in ``save_dtype``.

    Args:
        folder: Where to.
        name: Of the model: a folder or a file there.
        config: The run's.
        unet: For its config.
        weights: Its weights by diffusers' names, float32.
        metadata: For the header of a single file.

    Returns:
        The files, the UNet's weights or the single file first.
    """
    dtype: torch.dtype = getattr(torch, config.save_dtype)
    weights = _cast(weights, dtype)
    whole = folder / name
    if config.save_checkpoint_format == "single_file":
        parts = folder / "parts"
        _write_frozen_parts(parts, config)
        found = [_part_weights(parts / part) for part in ("text_encoder", "text_encoder_2", "vae")]
        shutil.rmtree(parts)
        path = folder / f"{name}.safetensors"
        tensors = single_file_tensors(weights, *found)
        write_safetensors(path, _cast(tensors, dtype), metadata)
        return [path]
    if config.save_checkpoint_format == "full_diffusers":
        _write_frozen_parts(whole, config)
        for path in sorted(whole.rglob("*.safetensors")):
            # Again: save_pretrained's header order changes from run to run.
            tensors = _as_others_name(path.parent.name, load_file(path))
            write_safetensors(path, _cast(tensors, dtype), {"format": "pt"})
    unet.save_config(whole / "unet")
    first = whole / "unet" / _UNET_FILE
    write_safetensors(first, weights, {"format": "pt"})
    rest = (path for path in whole.rglob("*") if path.is_file() and path != first)
    return [first, *sorted(rest)]


def _write_frozen_parts(folder: Path, config: SdxlFinetuneConfig) -> None:
    """The base model as a diffusers folder, but for the UNet's."""
    pipeline: Any = load_sdxl_text_encoders(config, _CPU)
    pipeline.register_modules(vae=load_vae(config, _CPU))
    # The encoders' configs say their precision, and loaders take it from there.
    pipeline.to(getattr(torch, config.save_dtype))
    pipeline.save_pretrained(folder, safe_serialization=True)
    base = base_model_folder(config, ("scheduler",))
    shutil.copytree(base / "scheduler", folder / "scheduler")
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text("utf-8"))
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _part_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return _as_others_name(folder.name, tensors)


def _as_others_name(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A part's tensors by the names that every reader knows."""
    is_clip = part.startswith("text_encoder")
    return {clip_path(name) if is_clip else name: tensor for name, tensor in tensors.items()}


def _cast(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating-point tensors in another precision, on the CPU."""
    return {
        name: tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
