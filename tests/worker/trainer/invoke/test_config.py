"""A job as the library's config, compared with the recorded field names of its models."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.worker.trainer.runs_options import FLUX_OPTIONS, OPTIONS, request_for
from worker.trainer.invoke.config import library_config

# The option names of each of the library's models, as of commit 99c673d.
FIELDS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("library_fields.json").read_text("utf-8")
)
LOADERS = {
    "IMAGE_CAPTION_FLUX_DATA_LOADER": "ImageCaptionFluxDataLoaderConfig",
    "IMAGE_CAPTION_SD_DATA_LOADER": "ImageCaptionSDDataLoaderConfig",
    "TEXTUAL_INVERSION_SD_DATA_LOADER": "TextualInversionSDDataLoaderConfig",
    "DREAMBOOTH_SD_DATA_LOADER": "DreamboothSDDataLoaderConfig",
}


def with_loader(**values: Any) -> dict[str, Any]:
    return {**FLUX_OPTIONS, "data_loader": {**FLUX_OPTIONS["data_loader"], **values}}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_are_exactly_the_librarys(kind: str) -> None:
    values = library_config(request_for(OPTIONS[kind]))
    assert sorted(values) == FIELDS[kind]
    loader = values["data_loader"]
    assert sorted(loader) == FIELDS[LOADERS[loader["type"]]]
    assert set(loader["dataset"]) <= set(FIELDS["ImageDirDatasetConfig"])
    assert sorted(values["optimizer"]) == FIELDS["AdamOptimizerConfig"]


def test_dreambooth_has_the_librarys_two_datasets() -> None:
    folder = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "/images"}
    loader = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "instance_caption": "a photo of sks",
        "instance_dataset": folder,
        "class_caption": "a photo",
        "class_dataset": folder,
    }
    values = library_config(request_for({**OPTIONS["SDXL_LORA"], "data_loader": loader}))
    assert sorted(values["data_loader"]) == FIELDS["DreamboothSDDataLoaderConfig"]
    for name in ("instance_dataset", "class_dataset"):
        assert values["data_loader"][name]["type"] == "IMAGE_DIR_DATASET"


def test_values_are_the_jobs_except_for_our_own_parts() -> None:
    options = {"lora_rank_dim": 8, "max_checkpoints": 2, "transformer_learning_rate": 0.5}
    values = library_config(request_for({**FLUX_OPTIONS, **options}))
    assert (values["lora_rank_dim"], values["transformer_learning_rate"]) == (8, 0.5)
    assert (values["max_train_steps"], values["save_every_n_steps"]) == (4, 2)
    assert values["seed"] == 7
    assert values["base_output_dir"] == "/scratch/job-1"
    # The stage removes old checkpoints once the new one is recorded.
    assert values["max_checkpoints"] is None
    # The library needs one of the two.
    assert values["validate_every_n_epochs"] == 1


def test_library_gets_prompts_with_the_trigger_word_and_not_the_option() -> None:
    prompts = {"validation_prompts": ["a lamp", "ohwx"], "validate_every_n_steps": 2}
    values = library_config(request_for({**FLUX_OPTIONS, **prompts, "trigger_word": "OHWX"}))
    assert values["validation_prompts"] == ["OHWX, a lamp", "ohwx"]
    assert "trigger_word" not in values


def test_library_gets_no_path_or_address_of_a_dataset() -> None:
    dataset = {"type": "ARCHIVE", "archive": "https://example.org/a.zip?signature=secret"}
    values = library_config(request_for(with_loader(dataset=dataset, caption_dropout=0.5)))
    assert values["data_loader"]["dataset"] == {
        "type": "IMAGE_CAPTION_DIR_DATASET",
        "dataset_dir": "datasets/abc/data.json",
    }
    assert "secret" not in json.dumps(values)


def test_validation_images_have_the_size_of_the_buckets() -> None:
    buckets = {"target_resolution": 768, "start_dim": 512, "end_dim": 1024, "divisible_by": 64}
    values = library_config(request_for(with_loader(aspect_ratio_buckets=buckets)))
    assert values["data_loader"]["resolution"] == 768


def test_library_does_not_mirror_cached_images() -> None:
    cached = {**with_loader(random_flip=True), "cache_vae_outputs": True}
    assert library_config(request_for(cached))["data_loader"]["random_flip"] is False
    uncached = with_loader(random_flip=True)
    assert library_config(request_for(uncached))["data_loader"]["random_flip"] is True


def test_models_are_not_offloaded_without_a_gpu() -> None:
    option = {
        "enable_cpu_offload_during_validation": True,
        "validation_prompts": ["a cat"],
        "validate_every_n_steps": 2,
    }
    for device, expected in (("cpu", False), ("cuda", True)):
        request = request_for({**FLUX_OPTIONS, **option}, device=device)
        assert library_config(request)["enable_cpu_offload_during_validation"] is expected


def test_patch_trains_bfloat16_finetune_in_mixed_precision() -> None:
    request = request_for({**OPTIONS["SDXL_FINETUNE"], "weight_dtype": "bfloat16"})
    assert library_config(request)["mixed_precision"] == "bf16"
    assert library_config(request, frozenset())["mixed_precision"] == "no"
    assert library_config(request_for(FLUX_OPTIONS))["mixed_precision"] == "no"


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "all"])
def test_library_opens_no_tracker(tracker: str) -> None:
    values = library_config(request_for({**FLUX_OPTIONS, "report_to": tracker}))
    assert values["report_to"] == "tensorboard"
