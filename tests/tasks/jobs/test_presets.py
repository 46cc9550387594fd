import json
from pathlib import Path
from typing import Any

import pytest

from routing.classes import MemoryClass
from routing.policy import AUTO_SHARE, RESOURCE_REQUIREMENTS, TrainingType
from tasks.errors import DoesNotFitJobError, InvalidJobError
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.optimizers import AdamOptimizerConfig
from tasks.jobs.presets import (
    ALIASES,
    SUPPORTED_TRAINING_TYPES,
    get_flux_lora_config,
    get_sdxl_finetune_config,
    get_sdxl_lora_config,
    get_sdxl_textual_inversion_config,
    merge_training,
    preset,
    preset_names,
)

DOCS = Path(__file__).parents[3] / "docs"
DATASET = {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}}


# What a preset of textual inversion leaves to the job.
NEW_WORD = {
    "placeholder_token": "<lamp>",
    "initializer_token": "lamp",
    "data_loader": {**DATASET, "caption_preset": "object"},
}
PRODIGY = {"optimizer_type": "Prodigy"}


def job_of(name: str, **training: Any) -> TrainingJob:
    needed = NEW_WORD if "textual_inversion" in name else {"data_loader": DATASET}
    return parse_job({"preset": name, "training": {**needed, **training}})


def flux_of(document: dict[str, Any]) -> FluxLoraConfig:
    training = parse_job(document).training
    assert isinstance(training, FluxLoraConfig)
    return training


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_routes_to_the_class_in_its_name(name: str) -> None:
    memory_class = name.removesuffix("_fast").rpartition("x")[2]
    # FLUX never runs below 40 GB, also not the preset for those who own 24.
    expected = "gpu.40gb" if name == "flux_lora_1x24gb" else f"gpu.{memory_class}"
    assert job_of(name).route().gpu_queue == expected
    assert preset(name)["summary"]
    assert name.startswith(job_of(name).training.type.lower())


@pytest.mark.parametrize("name", preset_names())
def test_every_option_of_a_preset_has_an_effect(name: str) -> None:
    assert [w for w in job_of(name).training.warnings() if "has no effect" in w] == []


@pytest.mark.parametrize("name", [name for name in preset_names() if name.endswith("_fast")])
def test_a_fast_preset_fits_its_class_with_a_margin(name: str) -> None:
    fast, plain = job_of(name), job_of(name.removesuffix("_fast"))
    route = fast.route()
    assert route.estimate.needed_gib < 0.95 * route.memory_class.floor_gib
    samples = (
        job.training.train_batch_size * job.training.gradient_accumulation_steps
        for job in (fast, plain)
    )
    assert len(set(samples)) == 1
    assert fast.training.cache_vae_outputs
    assert fast.training.learning_rates().items() <= plain.training.learning_rates().items()


def test_the_flux_preset_for_24_gb_routes_to_40_gb() -> None:
    route = job_of("flux_lora_1x24gb").route()
    assert route.estimate.needed_gib < MemoryClass.GB24.floor_gib
    assert route.memory_class == MemoryClass.GB40


@pytest.mark.parametrize(
    ("name", "optimizer", "batch", "checkpointing", "cached"),
    [
        ("sdxl_lora_1x16gb", "AdamW", 1, True, False),
        ("sdxl_lora_1x24gb", "AdamW", 1, False, False),
        ("sdxl_textual_inversion_1x16gb", "AdamW", 1, True, False),
        ("sdxl_finetune_1x40gb", "Adafactor", 1, True, True),
        ("sdxl_finetune_1x80gb", "AdamW", 4, True, True),
    ],
)
def test_the_sdxl_presets_train_at_1024_px_with_buckets(
    name: str, optimizer: str, batch: int, checkpointing: bool, cached: bool
) -> None:
    training = job_of(name).training
    assert training.optimizer.optimizer_type == optimizer
    assert training.train_batch_size == batch
    assert training.gradient_checkpointing is checkpointing
    assert training.cache_vae_outputs
    assert training.caches_text is cached
    buckets = training.loader.aspect_ratio_buckets
    assert buckets is not None
    assert buckets.model_dump() == {
        "target_resolution": 1024,
        "start_dim": 512,
        "end_dim": 2048,
        "divisible_by": 64,
    }


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_preset(alias: str) -> None:
    assert job_of(alias).training == job_of(ALIASES[alias]).training


PLAN: dict[str, dict[str, Any]] = {
    "flux_1x24gb": {
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "weight_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "cache_vae_outputs": True,
    },
    "flux_1x40gb": {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "weight_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "cache_vae_outputs": False,
    },
    "flux_1x80gb": {
        "train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "weight_dtype": "float16",
        "gradient_checkpointing": False,
        "cache_vae_outputs": False,
    },
}
# As planned it takes more memory than any class has, and leaves the range of float16.
CHANGED = {"flux_1x80gb": {"weight_dtype": "bfloat16", "gradient_checkpointing": 30}}


@pytest.mark.parametrize("name", PLAN)
def test_presets_have_their_planned_values_but_for_the_documented_ones(name: str) -> None:
    training = job_of(name).training.model_dump(mode="json")
    changed = CHANGED.get(name, {})
    assert {option: training[option] for option in PLAN[name]} == PLAN[name] | changed
    page = (DOCS / "reference" / "presets.md").read_text("utf-8")
    for option, value in changed.items():
        planned = json.dumps(PLAN[name][option]).strip('"')
        assert f"| `{ALIASES[name]}` | `{option}` | {planned} | {value} |" in page


def test_the_planned_values_of_the_80_gb_preset_do_not_fit() -> None:
    with pytest.raises(DoesNotFitJobError):
        job_of("flux_1x80gb", **PLAN["flux_1x80gb"]).route()


@pytest.mark.parametrize("name", preset_names())
def test_presets_leave_a_part_of_their_class_free(name: str) -> None:
    route = job_of(name).route()
    assert route.estimate.needed_gib <= AUTO_SHARE * route.memory_class.floor_gib


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("flux")])
def test_flux_presets_train_in_bfloat16(name: str) -> None:
    assert [w for w in job_of(name).warnings() if "float16" in w] == []


def test_precedence_is_job_preset_default() -> None:
    training = job_of("flux_1x40gb", train_batch_size=1).training
    assert isinstance(training, FluxLoraConfig)
    assert training.train_batch_size == 1
    assert training.gradient_accumulation_steps == 2
    assert training.lora_rank_dim == 4


def test_a_jobs_option_replaces_the_presets_exclusive_one() -> None:
    training = job_of("flux_1x40gb", max_train_epochs=3).training
    assert (training.max_train_steps, training.max_train_epochs) == (None, 3)


@pytest.mark.parametrize("kind", ["Prodigy", "Adafactor"])
def test_another_optimizer_drops_the_presets_settings(kind: str) -> None:
    training = job_of("sdxl_textual_inversion_1x16gb", optimizer={"optimizer_type": kind}).training
    assert training.optimizer.model_fields_set == {"optimizer_type"}
    assert set(training.learning_rates().values()) == {training.optimizer.learning_rate}
    config = get_flux_lora_config(
        learning_rate=1e-4, optimizer={"optimizer_type": kind}, data_loader=DATASET
    )
    flux = flux_of({"training": config})
    assert flux.learning_rates() == {"transformer": flux.optimizer.learning_rate}
    assert flux.optimizer.learning_rate > 1e-4


def test_another_optimizer_drops_the_presets_rates() -> None:
    base = {"type": "FLUX_LORA", "transformer_learning_rate": 1e-4, "lora_rank_dim": 8}
    other = merge_training(base, {"optimizer": PRODIGY})
    assert other == {"type": "FLUX_LORA", "lora_rank_dim": 8, "optimizer": PRODIGY}
    # AdamW is what a preset that names none takes.
    for optimizer in ({"optimizer_type": "AdamW", "beta1": 0.8}, {"beta1": 0.8}):
        assert merge_training(base, {"optimizer": optimizer}) == {**base, "optimizer": optimizer}
    own = {"optimizer": PRODIGY, "transformer_learning_rate": 1.0}
    assert merge_training(base, own)["transformer_learning_rate"] == 1.0


def test_settings_of_the_same_optimizer_are_merged() -> None:
    for optimizer in ({"beta1": 0.8}, {"optimizer_type": "AdamW", "beta1": 0.8}):
        found = job_of("sdxl_finetune_1x80gb", optimizer=optimizer).training.optimizer
        assert found == AdamOptimizerConfig(learning_rate=1e-5, beta1=0.8)


def test_an_unknown_preset_is_reported_with_other_problems() -> None:
    with pytest.raises(InvalidJobError, match=r"(?s)there is no preset 'huge'.*lora_rank_dim"):
        parse_job(
            {
                "preset": "huge",
                "training": {"type": "FLUX_LORA", "lora_rank_dim": 0, "data_loader": DATASET},
            }
        )


@pytest.mark.parametrize("resolution", [512, 528, 576, 640, 768, 1024])
def test_the_config_function_returns_valid_configs(resolution: int) -> None:
    config = get_flux_lora_config(resolution=resolution, data_loader=DATASET)
    training = flux_of({"training": config})
    assert training.data_loader.resolution == resolution
    assert training.learning_rates() == {"transformer": 1e-4}
    assert not [w for w in training.warnings() if "has no effect" in w]
    assert training.lr_scheduler == "constant_with_warmup"


def test_the_config_function_takes_any_further_option() -> None:
    config = get_flux_lora_config(lora_scale=0.5, data_loader={**DATASET, "random_flip": True})
    training = flux_of({"training": config})
    assert training.lora_scale == 0.5
    assert training.data_loader.random_flip


def test_the_config_function_leaves_bad_sizes_to_validation() -> None:
    with pytest.raises(InvalidJobError, match="570 is not divisible by 16"):
        parse_job({"training": get_flux_lora_config(resolution=570, data_loader=DATASET)})


@pytest.mark.parametrize("training_type", TrainingType)
def test_every_type_has_a_valid_config_function(
    training_type: TrainingType,
) -> None:
    make = SUPPORTED_TRAINING_TYPES[training_type]
    needed = NEW_WORD if "INVERSION" in training_type else {"data_loader": DATASET}
    config = make(resolution=576, batch_size=2, learning_rate=3e-4, max_train_steps=8, **needed)
    training = parse_job({"training": config}).training
    assert training.type == training_type
    assert set(training.learning_rates().values()) == {3e-4}
    assert {size.pixels <= 576 * 576 for size in training.loader.sizes()} == {True}
    assert (training.train_batch_size, training.save_every_n_steps) == (2, 2)
    assert [w for w in training.warnings() if "has no effect" in w] == []
    by_epochs = make(max_train_epochs=3, **needed)
    assert parse_job({"training": by_epochs}).training.max_train_steps is None


def test_sdxls_buckets_may_step_by_8_px() -> None:
    for make, step in ((get_sdxl_lora_config, 8), (get_flux_lora_config, 16)):
        loader = make(resolution=520)["data_loader"]
        assert loader["aspect_ratio_buckets"]["divisible_by"] == step
    assert get_sdxl_finetune_config()["data_loader"]["resolution"] == 1024
    assert get_sdxl_textual_inversion_config("<a>")["placeholder_token"] == "<a>"


def test_every_training_type_has_requirements() -> None:
    assert set(SUPPORTED_TRAINING_TYPES) == set(TrainingType)
    assert set(RESOURCE_REQUIREMENTS) == set(TrainingType)
    assert RESOURCE_REQUIREMENTS["FLUX_LORA"] == {"gpu_memory": "40GB", "system_memory": "64GB"}


@pytest.mark.parametrize(
    ("resolution", "divisor"),
    [(512, 128), (576, 32), (640, 64), (768, 128), (1024, 128), (528, 16), (570, 16)],
)
def test_buckets_have_the_largest_possible_step(resolution: int, divisor: int) -> None:
    assert get_flux_lora_config(resolution=resolution)["data_loader"]["aspect_ratio_buckets"] == {
        "target_resolution": resolution,
        "start_dim": resolution // 2 // divisor * divisor,
        "end_dim": resolution * 2,
        "divisible_by": divisor,
    }


def test_the_config_function_has_its_planned_values() -> None:
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


def test_the_shortest_run_is_saved() -> None:
    assert get_flux_lora_config(max_train_steps=1)["save_every_n_steps"] == 1


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_not_warned_about_its_own_values(name: str) -> None:
    job = job_of(name)
    assert set(job.warnings()) <= set(job.training.reader_warnings())
    assert preset(name)["title"]


def test_a_value_of_the_jobs_own_is_warned_about() -> None:
    [warning] = job_of("flux_lora_1x24gb", cache_vae_outputs=False).warnings()
    assert "uncached encoder outputs" in warning
    only_text = {"train_transformer": False, "train_text_encoder": True}
    uncached = {**only_text, "cache_text_encoder_outputs": False}
    found = job_of("flux_lora_1x40gb", **uncached).warnings()
    assert not any("transformer_learning_rate" in warning for warning in found)
