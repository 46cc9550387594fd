from typing import Any

import pytest
import yaml

from console.pages.form.draft import Draft
from routing.policy import TrainingType
from tasks.jobs.job import parse_job
from tasks.jobs.presets import preset, preset_names

ARCHIVE = {"type": "ARCHIVE", "archive": "upload:0123456789abcdef0123456789abcdef"}


def with_images(draft: Draft) -> Draft:
    draft.dataset = dict(ARCHIVE)
    if draft.training_type == TrainingType.SDXL_TEXTUAL_INVERSION:
        draft.set("placeholder_token", "<cat>")
        draft.set("initializer_token", "cat")
        draft.set("data_loader.caption_preset", "object")
    return draft


@pytest.mark.parametrize("name", preset_names())
def test_an_unchanged_preset_is_the_whole_job(name: str) -> None:
    draft = with_images(Draft(preset(name)["training"]["type"], name))
    job = parse_job(draft.document())
    assert job.preset == name
    left = set(draft.document()["training"]) - {"data_loader"}
    assert left <= {"placeholder_token", "initializer_token"}


@pytest.mark.parametrize("training_type", TrainingType)
def test_a_job_without_preset_names_its_type(training_type: str) -> None:
    draft = with_images(Draft(training_type))
    draft.set("max_train_steps", 100)
    draft.set("save_every_n_steps", 50)
    assert parse_job(draft.document()).training.type == training_type


def test_flux_trains_in_bfloat16_unless_the_user_chooses_float16() -> None:
    draft = with_images(Draft("FLUX_LORA"))
    draft.set("max_train_steps", 100)
    draft.set("save_every_n_steps", 50)
    assert parse_job(draft.document()).training.weight_dtype == "bfloat16"
    draft.set("weight_dtype", "float16")
    assert parse_job(draft.document()).training.weight_dtype == "float16"


@pytest.mark.parametrize("name", [None, *(it for it in preset_names() if "flux" in it)])
def test_the_form_starts_flux_at_the_rate_of_the_presets(name: str | None) -> None:
    draft = with_images(Draft("FLUX_LORA", name))
    if name is None:
        draft.set("max_train_steps", 100)
        draft.set("save_every_n_steps", 50)
    assert draft.value("transformer_learning_rate") == 1e-4
    assert parse_job(draft.document()).training.learning_rates() == {"transformer": 1e-4}
    draft.set("optimizer.optimizer_type", "Prodigy")
    assert parse_job(draft.document()).training.learning_rates() == {"transformer": 1.0}


def test_a_value_equal_to_the_presets_is_not_the_jobs_own() -> None:
    draft = Draft("FLUX_LORA", "flux_lora_1x40gb")
    draft.set("train_batch_size", 4)
    assert draft.own() == ["train_batch_size"]
    draft.set("train_batch_size", 2)
    assert draft.own() == []


def test_another_preset_keeps_the_jobs_own_values() -> None:
    draft = Draft("FLUX_LORA", "flux_lora_1x40gb")
    draft.set("train_batch_size", 4)
    draft.set("lora_rank_dim", 16)
    draft.choose_preset("flux_lora_1x80gb")
    # The batch of that preset is 4 by itself.
    assert draft.own() == ["lora_rank_dim"]
    assert draft.value("gradient_checkpointing") == 30


def test_one_block_is_not_true() -> None:
    draft = with_images(Draft("FLUX_LORA", "flux_lora_1x40gb"))
    assert draft.value("gradient_checkpointing") is True
    draft.set("gradient_checkpointing", 1)
    assert parse_job(draft.document()).training.checkpointed_blocks == 1


def test_epochs_replace_steps_until_reset() -> None:
    draft = Draft("FLUX_LORA", "flux_lora_1x40gb")
    draft.set("max_train_epochs", 3)
    assert draft.value("max_train_steps") is None
    draft.reset("max_train_epochs")
    assert draft.value("max_train_steps") == 1000


def test_another_optimizer_has_its_own_options_and_rates() -> None:
    draft = with_images(Draft("FLUX_LORA", "flux_lora_1x40gb"))
    draft.set("optimizer.beta1", 0.8)
    draft.set("optimizer.optimizer_type", "Prodigy")
    assert draft.value("optimizer.learning_rate") == 1.0
    assert draft.value("transformer_learning_rate") is None
    assert draft.control("optimizer.beta1") is None
    assert "beta1" not in draft.document()["training"]["optimizer"]
    parse_job(draft.document())


@pytest.mark.parametrize("side", [64, 512, 1024, 1040])
def test_a_resolution_changes_the_buckets(side: int) -> None:
    draft = with_images(Draft("FLUX_LORA", "flux_lora_1x40gb"))
    draft.set_resolution(side)
    loader = parse_job(draft.document()).training.loader
    assert loader.resolution == side
    assert loader.aspect_ratio_buckets is not None
    assert loader.aspect_ratio_buckets.target_resolution == side


def test_buckets_are_switched_off_and_on() -> None:
    draft = with_images(Draft("SDXL_LORA", "sdxl_lora_1x16gb"))
    draft.set("data_loader.aspect_ratio_buckets", False)
    assert parse_job(draft.document()).training.loader.aspect_ratio_buckets is None
    assert draft.control("data_loader.aspect_ratio_buckets.end_dim") is None
    draft.set("data_loader.aspect_ratio_buckets", True)
    assert draft.own() == []


def test_dreambooth_uses_its_instance_dataset() -> None:
    draft = Draft("SDXL_LORA", "sdxl_lora_1x16gb")
    draft.set("data_loader.type", "DREAMBOOTH_SD_DATA_LOADER")
    draft.set("data_loader.instance_caption", "a cat")
    draft.dataset = dict(ARCHIVE)
    job = parse_job(draft.document())
    assert [it.type for it in job.training.loader.sources()] == ["ARCHIVE"]  # type: ignore[attr-defined]
    again = Draft.of(job)
    assert again.document() == draft.document() | {"training": draft.document()["training"]}


def changed(draft: Draft) -> Draft:
    draft.name = "my-cat"
    draft.set("max_train_steps", 300)
    draft.set("gradient_checkpointing", not draft.value("gradient_checkpointing"))
    draft.set_resolution(512)
    return draft


@pytest.mark.parametrize("name", preset_names())
def test_an_earlier_job_is_filled_in_unchanged(name: str) -> None:
    draft = changed(with_images(Draft(preset(name)["training"]["type"], name)))
    again = Draft.of(parse_job(draft.document()))
    assert again.document() == draft.document()


def test_an_earlier_job_without_preset_is_filled_in() -> None:
    draft = with_images(Draft("FLUX_LORA"))
    draft.set("max_train_epochs", 2)
    draft.set("save_every_n_epochs", 1)
    job = parse_job(draft.document())
    assert parse_job(Draft.of(job).document()) == job


def test_submit_accepts_the_file_of_a_draft() -> None:
    draft = changed(with_images(Draft("FLUX_LORA", "flux_lora_1x40gb")))
    read: dict[str, Any] = yaml.safe_load(draft.as_yaml())
    assert parse_job(read) == parse_job(draft.document())
