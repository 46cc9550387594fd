import hashlib
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from tasks.base_models.files import base_model_folder, file_digest
from tests.worker.trainer.runs import sdxl_config_of


def test_digest_of_a_hub_file_is_its_name(tmp_path: Path) -> None:
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


def test_only_loaded_files_of_a_hub_repository_are_fetched(
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

    def snapshot_download(
        _: str, *, revision: str | None, allow_patterns: Any, ignore_patterns: Any
    ) -> str:
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
    # This part has no such variant.
    assert weights_of("text_encoder", "fp16") == ["text_encoder/model.safetensors"]
    single = tmp_path / "whole.safetensors"
    single.write_bytes(b"")
    shutil.rmtree(fetched)
    config = sdxl_config_of("SDXL_LORA", single, single_file_config="some/model")
    folder = base_model_folder(config, ("unet", "tokenizer"))
    assert not list(folder.rglob("*.safetensors"))
    assert (folder / "unet" / "config.json").is_file()
