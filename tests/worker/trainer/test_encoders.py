import hashlib
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from safetensors.torch import load_file

from tasks.base_models.files import base_model_folder, file_digest
from tasks.errors import BaseModelFilesError
from tests.worker.trainer.runs import (
    CACHED,
    Images,
    config_of,
    run_cache,
    run_train,
    sdxl_config_of,
)
from worker.trainer.errors import WeightsMismatchError
from worker.trainer.export.safetensors_file import safetensors_bytes, write_safetensors

PARTS = {
    "transformer_path": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder_1_path": "text_encoder/model.safetensors",
    "text_encoder_2_path": "text_encoder_2/model.safetensors",
}


@pytest.mark.parametrize("option", PARTS)
def test_an_override_of_the_same_weights_changes_nothing(
    tiny_flux: Path, data: Images, option: str
) -> None:
    plain = run_train(data, config_of(tiny_flux))
    overridden = run_train(data, config_of(tiny_flux, **{option: str(tiny_flux / PARTS[option])}))
    assert overridden.losses == plain.losses


@pytest.mark.parametrize("option", PARTS)
def test_an_override_of_other_weights_changes_the_loss(
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
def test_an_override_that_does_not_fit_is_refused_by_its_keys(
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
    with pytest.raises(WeightsMismatchError) as caught:
        run_train(data, config_of(tiny_flux, **{option: str(path)}))
    # transformers renames old keys as it reads them, so that only the end of a name is sure.
    assert name.split(".")[-2] in str(caught.value)


@pytest.mark.parametrize("option", PARTS)
def test_an_override_that_is_not_there_or_no_safetensors_is_refused(
    tiny_flux: Path, tmp_path: Path, data: Images, option: str
) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(BaseModelFilesError, match="no such file"):
        run_train(data, config_of(tiny_flux, **{option: str(path)}))
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(BaseModelFilesError):
        run_train(data, config_of(tiny_flux, **{option: str(path)}))


def test_an_overridden_encoder_has_entries_of_its_own(
    tiny_flux: Path, tmp_path: Path, data: Images
) -> None:
    tensors = {n: t * 1.1 for n, t in load_file(tiny_flux / PARTS["text_encoder_1_path"]).items()}
    path = tmp_path / "other.safetensors"
    write_safetensors(path, tensors)
    run_cache(data, config_of(tiny_flux, **CACHED))
    options: dict[str, Any] = {**CACHED, "text_encoder_1_path": str(path)}
    done = run_cache(data, config_of(tiny_flux, **options))
    assert (done.encoded_captions, done.encoded_images) == (6, 0)


def test_a_file_of_the_hubs_cache_is_known_by_its_name(tmp_path: Path) -> None:
    name = hashlib.sha256(b"large").hexdigest()
    blob = tmp_path / "blobs" / name
    blob.parent.mkdir()
    blob.write_bytes(b"never read")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_digest(link) == name
    plain = tmp_path / "config.json"
    plain.write_bytes(b"small")
    assert file_digest(plain) == hashlib.sha256(b"small").hexdigest()


def test_a_safetensors_file_is_the_same_bytes_for_the_same_contents(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3, dtype=torch.bfloat16), "a": torch.arange(5)}
    reordered = dict(reversed(tensors.items()))
    path = tmp_path / "file.safetensors"
    write_safetensors(path, tensors, {"y": "1", "x": "2"})
    assert path.read_bytes() == safetensors_bytes(reordered, {"x": "2", "y": "1"})
    read = load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_of_a_hub_repository_only_what_is_loaded_is_fetched(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, fetched = tmp_path / "repository", tmp_path / "fetched"
    shutil.copytree(tiny_sdxl, repository)
    unet = repository / "unet"
    for name in ("fp16", "non_ema"):
        shutil.copy(
            unet / "diffusion_pytorch_model.safetensors",
            unet / f"diffusion_pytorch_model.{name}.safetensors",
        )
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (repository / "sdxl.safetensors").write_bytes(b"a copy of all in one file")

    def snapshot_download(_: str, *, allow_patterns: Any, ignore_patterns: Any) -> str:
        every = [str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()]
        for name in filter_repo_objects(
            every, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (fetched / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, fetched / name)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    def weights_of(part: str, variant: str | None) -> list[str]:
        config = sdxl_config_of("SDXL_LORA", "some/model", hf_variant=variant)
        shutil.rmtree(fetched, ignore_errors=True)
        folder = base_model_folder(config, (part, "scheduler"))
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if "json" not in p.name]
        return sorted(name for name in names if (folder / name).is_file())

    assert weights_of("unet", None) == ["unet/diffusion_pytorch_model.safetensors"]
    assert weights_of("unet", "fp16") == ["unet/diffusion_pytorch_model.fp16.safetensors"]
    # A part without the variant.
    assert weights_of("text_encoder", "fp16") == ["text_encoder/model.safetensors"]
    single = tmp_path / "whole.safetensors"
    single.write_bytes(b"")
    shutil.rmtree(fetched)
    config = sdxl_config_of("SDXL_LORA", single, single_file_config="some/model")
    folder = base_model_folder(config, ("unet", "tokenizer"))
    assert not list(folder.rglob("*.safetensors"))
    assert (folder / "unet" / "config.json").is_file()
