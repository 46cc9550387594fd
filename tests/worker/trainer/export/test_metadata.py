import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from tasks.dataset import Sample, dataset_of
from tasks.jobs.job import parse_job
from tests.worker.trainer.runs import BUCKETS, Images, config_of, run_train, sdxl_config_of
from worker.trainer.data.batches import BatchPlan
from worker.trainer.export.lora_file import write_diffusers_file, write_kohya_file
from worker.trainer.export.metadata import RunMetadata
from worker.trainer.rng import StatelessRng


def sample(number: int, caption: str = "", part: int = 0) -> Sample:
    source = f"{number}.png"
    return Sample(
        image=f"{number:064x}", width=64, height=64, caption=caption, source=source, part=part
    )


def entries(config: Any, samples: list[Sample], step: int = 5) -> dict[str, str]:
    dataset = dataset_of(samples)
    sizes = dataset.sizes_in(config.loader.sizes())
    plan = BatchPlan(sizes, config.train_batch_size, 1, StatelessRng(1))
    return RunMetadata("cat", config, dataset, plan, total_steps=8).at(step)


def test_counts_and_names_are_those_of_sd_scripts() -> None:
    config = config_of("org/base", train_batch_size=2, loader={"caption_prefix": "ohwx cat"})
    found = entries(config, [sample(1, "Red, big"), sample(2, "red"), sample(3, " red ,, small,")])
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "cat",
        "modelspec.resolution": "64x64",
        "modelspec.trigger_phrase": "ohwx cat",
        "modelspec.tags": "red, big, small",
        "modelspec.description": "A LoRA for org/base, trained on 3 images for 5 steps",
        "ss_sd_model_name": "org/base",
        "ss_output_name": "cat",
        "ss_num_train_images": "3",
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": "2",
        "ss_steps": "5",
        "ss_epoch": "3",
        "ss_max_train_steps": "8",
        "ss_num_epochs": "4",
        "ss_total_batch_size": "2",
        "ss_unet_lr": "0.01",
        "ss_mixed_precision": "no",
        "ss_v2": "False",
        "ss_resolution": "(64, 64)",
    }
    assert {name: found[name] for name in expected} == expected
    assert json.loads(found["ss_tag_frequency"]) == {"dataset": {"red": 3, "big": 1, "small": 1}}
    assert "ss_text_encoder_lr" not in found


def test_dreambooth_counts_its_class_images_as_regularization() -> None:
    loader = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "resolution": 64,
        "instance_caption": "ohwx cat",
        "instance_dataset": {"dataset_dir": "/unused"},
        "class_caption": "cat",
        "class_dataset": {"dataset_dir": "/unused"},
    }
    training = {"type": "SDXL_LORA", "max_train_steps": 1, "save_every_n_steps": 1}
    config = parse_job({"training": {**training, "data_loader": loader}}).training
    found = entries(config, [sample(1), sample(2, part=1), sample(3, part=1)])
    assert (found["ss_num_train_images"], found["ss_num_reg_images"]) == ("1", "2")
    assert found["modelspec.trigger_phrase"] == "ohwx cat"
    assert json.loads(found["ss_tag_frequency"]) == {
        "instance_dataset": {"ohwx cat": 1},
        "class_dataset": {"cat": 2},
    }


def test_trigger_word_is_the_phrase_and_a_tag() -> None:
    config = config_of("org/base", trigger_word="Ohwx", loader={"caption_prefix": "photo of"})
    found = entries(config, [sample(1, "red"), sample(2, "ohwx, small")])
    assert found["modelspec.trigger_phrase"] == "Ohwx"
    assert json.loads(found["ss_tag_frequency"]) == {"dataset": {"ohwx": 2, "red": 1, "small": 1}}


def test_hostile_captions_neither_grow_nor_break_a_header(tmp_path: Path) -> None:
    prefix = "\x1b[31m\u202e" + "x" * 100_000
    config = config_of("org/base", loader={"caption_prefix": prefix})
    hostile = [sample(n, f'{n}\x00"\\\ud7ff, ' + "y" * 60_000) for n in range(2000)]
    found = entries(config, hostile)
    path = tmp_path / "lora.safetensors"
    write_kohya_file(path, {"w": torch.ones(1)}, found, module="m", rank=4, alpha=4.0)
    assert path.stat().st_size < 256 * 1024
    with safe_open(path, framework="pt") as file:
        read = file.metadata()
    assert read["ss_tag_frequency"] == found["ss_tag_frequency"]
    assert all(text.isprintable() for text in read.values())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/someone/models/base", "base"),
        ("/home/someone/base.safetensors", "base.safetensors"),
        ("relative/folder/base/", "base"),
        ("org/base", "org/base"),
    ],
)
def test_a_path_of_the_worker_is_not_published(model: str, name: str) -> None:
    found = entries(sdxl_config_of("SDXL_LORA", model), [sample(1)])
    assert found["ss_sd_model_name"] == name
    assert f" {name}," in found["modelspec.description"]
    assert "someone" not in str(found)


def test_a_replaced_transformer_is_the_base_model() -> None:
    config = config_of("org/base", transformer_path="/home/someone/flux.safetensors")
    assert entries(config, [sample(1)])["ss_sd_model_name"] == "flux.safetensors"


def test_the_resolution_is_the_targets_and_not_a_buckets() -> None:
    found = entries(config_of("org/base", loader={"aspect_ratio_buckets": BUCKETS}), [sample(1)])
    side = BUCKETS["target_resolution"]
    assert found["modelspec.resolution"] == f"{side}x{side}"
    assert found["ss_resolution"] == f"({side}, {side})"


def test_hashes_are_those_of_sd_scripts(tmp_path: Path) -> None:
    tensors = {f"layer_{number}.lora_up.weight": torch.randn(64, 1024) for number in range(6)}
    path = tmp_path / "lora.safetensors"
    write_kohya_file(
        path, tensors, {"ss_v2": "False", "other": "ä"}, module="networks.lora", rank=4, alpha=4.0
    )
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    data = path.read_bytes()
    data_digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{data_digest}"
    assert metadata["sshs_model_hash"] == data_digest
    # sd-scripts saves the tensors with its own entries only, and hashes a part of that.
    own = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    alone = save(tensors, own)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
    assert set(own) >= {
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
    }


def test_a_diffusers_form_claims_nothing_of_kohyas(tmp_path: Path) -> None:
    weights = {
        f"{model}.{layer}.lora_{matrix}": torch.ones(2, 2)
        for model, layer in (("unet", "mid.proj"), ("text_encoder", "text_model.layers.0.fc1"))
        for matrix in "AB"
    }
    path = tmp_path / "lora.safetensors"
    write_diffusers_file(path, {"w": torch.ones(1)}, {"ss_v2": "False", "format": "pt"}, weights)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "lora_adapter_metadata", "modelspec.hash_sha256"}
    assert json.loads(metadata["lora_adapter_metadata"]) == {
        "text_encoder.lora_alpha": 2,
        "text_encoder.r": 2,
        "text_encoder.target_modules": ["layers.0.fc1"],
        "unet.lora_alpha": 2,
        "unet.r": 2,
        "unet.target_modules": ["mid.proj"],
    }


def test_the_same_run_writes_the_same_header(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_flux, max_train_steps=1)
    first = run_train(data, config).weights.read_bytes()
    monkeypatch.setattr("time.time", lambda: 0.0)
    path = run_train(data, config).weights
    assert path.read_bytes() == first
    assert load_file(path)
