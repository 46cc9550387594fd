"""Reads a part's weights from files of any layout: tensor by tensor, in the run's precision.

What is read is decided by ``tasks/base_models/parts.py``. Tensors go straight to the device: host
memory holds one or two, and FLUX's files have 24 GB.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tasks.base_models.parts import Part, StoredTensor
from tasks.base_models.safetensors_header import TensorEntry
from tasks.errors import BaseModelFilesError
from worker.trainer.export.safetensors_file import DTYPES


def empty_model(kind: Any, config: Mapping[str, object]) -> Any:
    """Return a frozen diffusers model without weights.

    Args:
        kind: Its class.
        config: Its ``config.json``.
    """
    with torch.device("meta"):
        return kind.from_config(config).eval().requires_grad_(False)


def load_weights(
    model: torch.nn.Module,
    weights: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device,
    path: str = "",
) -> None:
    """Load the weights of a model, or of one of its modules, from files.

    Args:
        model: The model.
        weights: Where the files have the model's tensors.
        dtype: The precision of the weights.
        device: The device of the weights.
        path: The module.

    Raises:
        BaseModelFilesError: A file is unreadable.
    """
    prefix = f"{path}." if path else ""
    tensors = {
        name.removeprefix(prefix): read_tensor(stored, dtype, device)
        for name, stored in weights.items()
        if name.startswith(prefix)
    }
    model.get_submodule(path).load_state_dict(tensors, assign=True)


def load_text_encoder(
    kind: Any,
    config: Any,
    weights: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Return a text encoder of transformers with weights from files.

    Args:
        kind: Its class.
        config: Its config.
        weights: Where the files have its tensors.
        dtype: The precision of its weights, but of those that must be float32.
        device: The device of its weights.

    Raises:
        BaseModelFilesError: A file is unreadable.
    """
    # T5 overflows in float16.
    exact = set(kind._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    # Without memory: from_pretrained only maps the names of files to those of its modules.
    stand_ins = {
        name: torch.zeros((), dtype=torch.float32 if exact & set(name.split(".")) else dtype)
        for name in weights
    }
    model, found = kind.from_pretrained(
        None,
        config=config,
        state_dict={name: each.expand(weights[name].shape) for name, each in stand_ins.items()},
        dtype=dtype,
        output_loading_info=True,
    )
    assert not {*found["missing_keys"], *found["unexpected_keys"]}, found
    names = {stand_in.data_ptr(): name for name, stand_in in stand_ins.items()}
    for parameter in model.parameters():
        stored = weights[names[parameter.data_ptr()]]
        parameter.data = read_tensor(stored, parameter.dtype, device)
    model.to(device)
    return model


def read_tensor(stored: StoredTensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor as the model has it, on the device, which also converts it.

    Raises:
        BaseModelFilesError: The file is unreadable, or a scale is no positive number.
    """
    entry, source = stored.entry, stored.source
    pieces = []
    for start, stop in source.rows or ((0, entry.shape[0]),):
        piece = _read_rows(entry, start, stop, device)
        if stored.scale is not None:
            scale = _scale(stored.scale).to(device)
            piece = piece.float() * (scale if scale.numel() == 1 else scale[start:stop])
        pieces.append(piece.to(dtype))
    tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if source.transposed:
        tensor = tensor.T.contiguous()
    return tensor.reshape(stored.shape)


def original_tensors(part: Part, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a part's tensors as the file of a whole model holds them by the original names.

    Args:
        part: The part.
        tensors: Its tensors by the names in diffusers' folders.
    """
    sources = part.namings[0]({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    prefix = "".join(part.prefixes[0])
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for target, source in sources.items():
        tensor = tensors[target].T if source.transposed else tensors[target]
        if ".attn_1." in source.name and tensor.ndim == 2:
            tensor = tensor[..., None, None]  # a convolution of 1 x 1
        start = 0
        for first, last in source.rows or ((0, 0),):
            rows = tensor[start : start + last - first] if source.rows else tensor
            pieces.setdefault(prefix + source.name, {})[first] = rows
            start += last - first
    return {
        name: torch.cat([rows[first] for first in sorted(rows)]).contiguous()
        if len(rows) > 1
        else rows[0].contiguous()
        for name, rows in pieces.items()
    }


def _scale(entry: TensorEntry) -> torch.Tensor:
    """Return a scale, () or (rows, 1)."""
    scale = _read(entry, entry.start, entry.end, torch.device("cpu")).float()
    if not (scale.isfinite().all() and (scale > 0).all()):
        raise BaseModelFilesError(str(entry.file), "a scale of its weights is no positive number")
    return scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)


def _read_rows(entry: TensorEntry, start: int, stop: int, device: torch.device) -> torch.Tensor:
    size = (entry.end - entry.start) // max(entry.shape[0], 1)
    flat = _read(entry, entry.start + start * size, entry.start + stop * size, device)
    return flat.reshape(stop - start, *entry.shape[1:])


def _read(entry: TensorEntry, start: int, end: int, device: torch.device) -> torch.Tensor:
    # Pinned memory is kept and reused by PyTorch, and copied while the next tensor is read.
    data = torch.empty(end - start, dtype=torch.uint8, pin_memory=device.type == "cuda")
    try:
        with entry.file.open("rb") as file:
            file.seek(start)
            if file.readinto(data.numpy().data) != end - start:
                raise BaseModelFilesError(str(entry.file), "it is truncated; download it again")
    except OSError as error:
        reason = error.strerror or str(error)
        raise BaseModelFilesError(str(entry.file), reason) from error
    return data.view(DTYPES[entry.dtype]).to(device, non_blocking=True)
