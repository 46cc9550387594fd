from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import BaseModelFilesError
from tests.worker.trainer.runs import (
    CACHED,
    Images,
    config_of,
    run_cache,
    run_train,
)
from worker.trainer.export.safetensors_file import write_safetensors

PARTS = {
    "transformer_path": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder_1_path": "text_encoder/model.safetensors",
    "text_encoder_2_path": "text_encoder_2/model.safetensors",
}


@pytest.mark.parametrize("option", PARTS)
def test_override_with_the_same_weights_changes_nothing(
    tiny_flux: Path, data: Images, option: str
) -> None:
    plain = run_train(data, config_of(tiny_flux))
    overridden = run_train(data, config_of(tiny_flux, **{option: str(tiny_flux / PARTS[option])}))
    assert overridden.losses == plain.losses


@pytest.mark.parametrize("option", PARTS)
def test_override_with_other_weights_changes_the_loss(
    tiny_flux: Path, tmp_path: Path, data: Images, option: str
) -> None:
    tensors = {name: t * 1.1 for name, t in load_file(tiny_flux / PARTS[option]).items()}
    path = tmp_path / "other.safetensors"
    write_safetensors(path, tensors)
    plain = run_train(data, config_of(tiny_flux))
    overridden = run_train(data, config_of(tiny_flux, **{option: str(path)}))
    assert overridden.losses[0] != plain.losses[0]


@pytest.mark.parametrize("option", PARTS)
@pytest.mark.parametrize("problem", ["lacks a key", "holds another key", "wrong shape"])
def test_override_that_does_not_fit_is_refused_by_its_keys(
    tiny_flux: Path, tmp_path: Path, data: Images, option: str, problem: str
) -> None:
    tensors = load_file(tiny_flux / PARTS[option])
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    if problem == "lacks a key":
        del tensors[name]
    elif problem == "holds another key":
        name = "stranger.weight"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(1, 1)
    path = tmp_path / "other.safetensors"
    write_safetensors(path, tensors)
    with pytest.raises(BaseModelFilesError) as caught:
        run_train(data, config_of(tiny_flux, **{option: str(path)}))
    assert name in str(caught.value)


@pytest.mark.parametrize("option", PARTS)
def test_missing_or_unreadable_override_is_refused(
    tiny_flux: Path, tmp_path: Path, data: Images, option: str
) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(BaseModelFilesError, match="no such file"):
        run_train(data, config_of(tiny_flux, **{option: str(path)}))
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(BaseModelFilesError):
        run_train(data, config_of(tiny_flux, **{option: str(path)}))


def test_overridden_encoder_has_separate_entries(
    tiny_flux: Path, tmp_path: Path, data: Images
) -> None:
    tensors = {n: t * 1.1 for n, t in load_file(tiny_flux / PARTS["text_encoder_1_path"]).items()}
    path = tmp_path / "other.safetensors"
    write_safetensors(path, tensors)
    run_cache(data, config_of(tiny_flux, **CACHED))
    options: dict[str, Any] = {**CACHED, "text_encoder_1_path": str(path)}
    done = run_cache(data, config_of(tiny_flux, **options))
    assert (done.encoded_captions, done.encoded_images) == (6, 0)
