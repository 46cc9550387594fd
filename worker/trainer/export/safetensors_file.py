"""safetensors files whose bytes depend only on their contents.

``safetensors.save_file`` writes its header in another order each time and the file with mode 0600.
The format is that of the safetensors project: a length, a JSON header, the data.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file atomically, the same bytes for the same contents.

    Args:
        path: The file; its folder exists.
        tensors: The tensors by name, on any device.
        metadata: Entries for the header.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(header_bytes(tensors, metadata or {}))
        for _, tensor in sorted(tensors.items()):
            file.write(raw_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
    partial.chmod(0o644)
    partial.replace(path)


def header_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file; the tensors' raw bytes follow, sorted by name."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes as a file holds them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy has no bfloat16, so the bytes go through uint8.
    return flat.view(torch.uint8).numpy().tobytes()
