"""Loads FLUX's transformer, frozen, in its weight dtype, onto a device."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from tasks.base_models.files import base_model_folder, existing_file, part_config, single_file
from tasks.errors import BaseModelFilesError
from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.errors import WeightsMismatchError
from worker.trainer.quantization import quantize


def load_transformer(config: FluxLoraConfig, device: torch.device) -> FluxTransformer2DModel:
    """The transformer of the base model, or of ``transformer_path``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        WeightsMismatchError: The override does not fit.
    """
    folder = base_model_folder(config, ("transformer",))
    part_config(folder, "transformer")
    dtype = getattr(torch, config.weight_dtype)
    source = config.transformer_path or config.model
    file = single_file(config)
    try:
        if config.transformer_path is None and file is not None:
            model: FluxTransformer2DModel = _from_original(file, folder, dtype)
        elif config.transformer_path is None:
            model = FluxTransformer2DModel.from_pretrained(
                folder, subfolder="transformer", use_safetensors=True, torch_dtype=dtype
            )
        else:
            model = _from_file(existing_file(config.transformer_path), folder, dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelFilesError(source, str(error).partition("\n")[0]) from error
    model.requires_grad_(False)
    if config.quantization is not None:
        quantize(model, config.quantization, device)
    model.to(device)  # type: ignore[arg-type] # its decorator hides it
    return model


def _from_original(path: Path, folder: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    """From a file with the original model's names."""
    model: FluxTransformer2DModel = FluxTransformer2DModel.from_single_file(
        str(path),
        config=str(folder),
        subfolder="transformer",
        local_files_only=True,
        torch_dtype=dtype,
    )
    return model


def _from_file(path: Path, folder: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    if any("double_blocks." in name for name in names):
        # Black Forest Labs' own names, which ComfyUI keeps too.
        return _from_original(path, folder, dtype)
    with torch.device("meta"):
        model: FluxTransformer2DModel = FluxTransformer2DModel.from_config(
            part_config(folder, "transformer")
        )
    expected = model.state_dict()
    tensors = load_file(path)
    wrong = {name for name in names & set(expected) if tensors[name].shape != expected[name].shape}
    missing, extra = (set(expected) - names) | wrong, names - set(expected)
    if missing or extra:
        raise WeightsMismatchError(str(path), "FLUX transformer", missing, extra)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return model
