from typing import Any

import pytest

from routing.requirements import RESOURCE_REQUIREMENTS, TrainingType
from tasks.errors import InvalidJobError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.presets import (
    ALIASES,
    SUPPORTED_TRAINING_TYPES,
    get_flux_lora_config,
    preset,
    preset_names,
)

DATA_SET = {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/pictures"}}


def job_of(name: str, **training: Any) -> TrainingJob:
    return parse_job({"preset": name, "training": {"data_loader": DATA_SET, **training}})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_validates_and_goes_to_the_class_in_its_name(name: str) -> None:
    memory_class = name.rpartition("x")[2]
    # FLUX never runs below 40 GB, also not the preset for those who own 24.
    expected = "gpu.40gb" if name == "flux_lora_1x24gb" else f"gpu.{memory_class}"
    assert job_of(name).route().gpu_queue == expected
    assert preset(name)["summary"]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_preset(alias: str) -> None:
    assert job_of(alias).training == job_of(ALIASES[alias]).training


@pytest.mark.parametrize(
    ("name", "batch", "accumulation", "dtype", "checkpointing", "cached_latents"),
    [
        ("flux_1x24gb", 1, 4, "bfloat16", True, True),
        ("flux_1x40gb", 2, 2, "bfloat16", True, False),
        ("flux_1x80gb", 4, 1, "float16", False, False),
    ],
)
def test_the_presets_hold_the_values_they_were_planned_with(
    name: str, batch: int, accumulation: int, dtype: str, checkpointing: bool, cached_latents: bool
) -> None:
    training = job_of(name).training
    assert training.train_batch_size == batch
    assert training.gradient_accumulation_steps == accumulation
    assert training.weight_dtype == dtype
    assert training.gradient_checkpointing is checkpointing
    assert training.cache_vae_outputs is cached_latents


def test_the_jobs_own_fields_win_over_the_presets_and_those_over_the_defaults() -> None:
    training = job_of("flux_1x40gb", train_batch_size=1).training
    assert training.train_batch_size == 1
    assert training.gradient_accumulation_steps == 2
    assert training.lora_rank_dim == 4


def test_of_two_options_that_exclude_each_other_the_jobs_own_puts_out_the_presets() -> None:
    training = job_of("flux_1x40gb", max_train_epochs=3).training
    assert (training.max_train_steps, training.max_train_epochs) == (None, 3)


def test_an_unknown_preset_is_told_together_with_all_else_that_is_wrong() -> None:
    with pytest.raises(InvalidJobError, match=r"(?s)there is no preset 'huge'.*lora_rank_dim"):
        parse_job(
            {
                "preset": "huge",
                "training": {"type": "FLUX_LORA", "lora_rank_dim": 0, "data_loader": DATA_SET},
            }
        )


@pytest.mark.parametrize("resolution", [512, 576, 640, 768, 1024])
def test_the_config_function_gives_configs_that_validate(resolution: int) -> None:
    config = get_flux_lora_config(resolution=resolution, data_loader=DATA_SET)
    training = parse_job({"training": config}).training
    assert training.data_loader.resolution == resolution
    assert training.learning_rate() == 1e-4
    assert training.lr_scheduler == "constant_with_warmup"


def test_the_config_function_takes_any_further_option() -> None:
    config = get_flux_lora_config(lora_scale=0.5, data_loader={**DATA_SET, "random_flip": True})
    training = parse_job({"training": config}).training
    assert training.lora_scale == 0.5
    assert training.data_loader.random_flip


def test_the_config_function_leaves_a_resolution_that_cannot_be_to_validation() -> None:
    with pytest.raises(InvalidJobError, match="570 is not divisible by 16"):
        parse_job({"training": get_flux_lora_config(resolution=570, data_loader=DATA_SET)})


def test_what_is_supported_is_a_training_type_and_every_type_has_its_requirements() -> None:
    assert set(SUPPORTED_TRAINING_TYPES) <= set(TrainingType)
    assert set(RESOURCE_REQUIREMENTS) == set(TrainingType)
    assert RESOURCE_REQUIREMENTS["FLUX_LORA"] == {"gpu_memory": "40GB", "system_memory": "64GB"}


@pytest.mark.parametrize(
    ("resolution", "divisor"),
    [(512, 128), (576, 32), (640, 64), (768, 128), (1024, 128), (528, 16), (570, 16)],
)
def test_the_config_functions_buckets_take_the_largest_step_that_divides_them(
    resolution: int, divisor: int
) -> None:
    assert get_flux_lora_config(resolution=resolution)["data_loader"]["aspect_ratio_buckets"] == {
        "target_resolution": resolution,
        "start_dim": resolution // 2,
        "end_dim": resolution * 2,
        "divisible_by": divisor,
    }


def test_the_config_function_gives_the_values_it_was_planned_with() -> None:
    config = get_flux_lora_config()
    loader = config.pop("data_loader")
    assert loader["dataloader_num_workers"] == 4
    assert config == {
        "type": "FLUX_LORA",
        "model": "black-forest-labs/FLUX.1-dev",
        "lora_rank_dim": 4,
        "train_batch_size": 1,
        "max_train_steps": 1000,
        "save_every_n_steps": 250,
        "transformer_learning_rate": 1e-4,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 10,
        "weight_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "lora_checkpoint_format": "kohya",
        "timestep_sampler": "shift",
        "discrete_flow_shift": 3.0,
        "optimizer": {"optimizer_type": "AdamW", "learning_rate": 1e-4},
    }


def test_the_config_function_saves_even_in_the_shortest_run() -> None:
    assert get_flux_lora_config(max_train_steps=1)["save_every_n_steps"] == 1
