from pathlib import Path

import torch
from safetensors.torch import load_file

from worker.trainer.export.safetensors_file import write_safetensors


def test_same_contents_make_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3, dtype=torch.bfloat16), "a": torch.arange(5)}
    reordered = dict(reversed(tensors.items()))
    path, other = tmp_path / "one" / "file.safetensors", tmp_path / "two" / "file.safetensors"
    for it in (path, other):
        it.parent.mkdir()
    write_safetensors(path, tensors, {"y": "1", "x": "2"})
    write_safetensors(other, reordered, {"x": "2", "y": "1"})
    assert path.read_bytes() == other.read_bytes()
    read = load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]
