import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worker.trainer.compute.memory import HostMeter
from worker.trainer.export.safetensors_file import SafetensorsFile, write_safetensors


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


def test_the_digest_is_that_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {"w": torch.randn(3, 4), "count": torch.tensor(7), "none": torch.empty(0)}
    write_safetensors(path, tensors, {"step": "3"}, digests={"sha256": "{}"})
    with SafetensorsFile(path) as file:
        assert file.metadata == {"step": "3", "sha256": file.digest()}
        assert {name: tensor.tolist() for name, tensor in file.items()} == {
            name: tensor.tolist() for name, tensor in tensors.items()
        }
    assert load_file(path).keys() == tensors.keys()


def test_floating_point_tensors_are_cast_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {"w": torch.randn(3, 4), "count": torch.tensor(7)}
    write_safetensors(path, tensors, dtype=torch.bfloat16)
    read = load_file(path)
    assert torch.equal(read["w"], tensors["w"].bfloat16())
    assert read["count"].dtype == torch.int64


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's VmHWM")
def test_memory_does_not_grow_with_the_number_of_tensors(tmp_path: Path) -> None:
    mib = 2**20
    tensors = {f"w{number}": torch.ones(4 * mib) for number in range(24)}  # 16 MiB each
    path, meter = tmp_path / "file.safetensors", HostMeter()
    meter.reset()
    before = meter.peak_bytes()
    write_safetensors(path, tensors, digests={"sha256": "{}"})
    with SafetensorsFile(path) as file:
        assert file.digest() == file.metadata["sha256"]
        for tensor in file.values():
            assert tensor[0] == 1
    assert meter.peak_bytes() - before < 8 * 16 * mib


def test_a_file_is_private_under_a_private_umask(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    os.umask(0o077)
    write_safetensors(path, {"w": torch.ones(2)})
    assert path.stat().st_mode & 0o777 == 0o600
