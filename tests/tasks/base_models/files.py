"""safetensors files of any names, types and shapes, without torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

_BYTES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "I32": 4}


def safetensors_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str = "U8",
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a sound file of zeros.

    Args:
        path: The file.
        shapes: The shape of each tensor.
        dtype: The type of the tensors that ``dtypes`` does not name.
        dtypes: Types of single tensors.
        metadata: Entries of the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        kind = (dtypes or {}).get(name, dtype)
        start, end = end, end + math.prod(shape) * _BYTES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    return path
