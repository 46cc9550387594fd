from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.buckets import Size
from tasks.jobs.job import parse_job
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.presets import SUPPORTED_TRAINING_TYPES
from tasks.jobs.run_warnings import count_warnings, rate_warnings, schedule_warnings
from tests.tasks.jobs.test_flux_lora import GOOD
from tests.tasks.jobs.test_sdxl import FINETUNE, LORA, TEXTUAL_INVERSION
from worker.trainer.data.batches import BatchPlan
from worker.trainer.rng import StatelessRng

FLUX = GOOD["training"]
PRODIGY, ADAFACTOR = {"optimizer_type": "Prodigy"}, {"optimizer_type": "Adafactor"}
EPOCHS = {"max_train_steps": None, "save_every_n_steps": None, "save_every_n_epochs": 1}


def config_of(training: dict[str, Any], **values: Any) -> PipelineConfig:
    return parse_job({"training": {**training, **values}}).training


@pytest.mark.parametrize(
    ("training", "optimizer", "warned"),
    [
        (LORA, {"learning_rate": 1e-4}, None),
        (LORA, {"learning_rate": 1.0}, "above what suits AdamW (1e-06 to 0.005): the run likely"),
        (LORA, {"learning_rate": 0.01}, "above what suits AdamW"),
        (LORA, {"learning_rate": 1e-8}, "below what suits AdamW (1e-06 to 0.005): it hardly"),
        (LORA, {"learning_rate": 1.0, "use_8bit": True}, "above what suits AdamW"),
        (LORA, PRODIGY, None),
        (
            LORA,
            {**PRODIGY, "learning_rate": 1e-4},
            "below what suits Prodigy (0.1 to 3): it",
        ),
        (LORA, {**PRODIGY, "learning_rate": 10}, "above what suits Prodigy"),
        (LORA, ADAFACTOR, None),
        (LORA, {**ADAFACTOR, "learning_rate": 1e-4}, "below what suits Adafactor (0.001 to 0.3)"),
        (LORA, {**ADAFACTOR, "learning_rate": 1.0}, "above what suits Adafactor"),
        (TEXTUAL_INVERSION, {"learning_rate": 5e-3}, None),
        (TEXTUAL_INVERSION, {"learning_rate": 5e-2}, None),
        (TEXTUAL_INVERSION, {"learning_rate": 1.0}, "above what suits AdamW (1e-05 to 0.1)"),
        (TEXTUAL_INVERSION, {"learning_rate": 1e-6}, "below what suits AdamW"),
        (TEXTUAL_INVERSION, {**PRODIGY, "learning_rate": 5e-3}, "below what suits Prodigy"),
        (FINETUNE, {"learning_rate": 1e-5}, None),
        (FINETUNE, {"learning_rate": 1e-3}, "above what suits AdamW (1e-08 to 0.0005)"),
        (FINETUNE, {**ADAFACTOR, "learning_rate": 1e-4}, None),
        (FINETUNE, {**ADAFACTOR, "learning_rate": 1.0}, "above what suits Adafactor"),
    ],
)
def test_a_rate_of_another_optimizer_is_a_warning(
    training: dict[str, Any], optimizer: dict[str, Any], warned: str | None
) -> None:
    found = list(rate_warnings(config_of(training, optimizer=optimizer)))
    assert bool(found) == (warned is not None)
    assert any(str(warned) in warning for warning in found) == bool(found)


def test_each_model_has_its_own_rates() -> None:
    rates = {"unet_learning_rate": 3e-3, "text_encoder_learning_rate": 3e-3}
    [warning] = rate_warnings(config_of(LORA, **rates))
    assert warning.startswith("the learning rate of text_encoder and text_encoder_2 (0.003) is far")
    rates = {"transformer_learning_rate": 1.0, "text_encoder_learning_rate": 1.0}
    found = rate_warnings(config_of(FLUX, **rates, train_text_encoder=True))
    models = [warning.split(" (")[0] for warning in found]
    assert models == ["the learning rate of transformer", "the learning rate of text_encoder"]


@pytest.mark.parametrize("training", [FLUX, LORA, TEXTUAL_INVERSION, FINETUNE])
@pytest.mark.parametrize("optimizer", [{}, PRODIGY, ADAFACTOR])
def test_no_default_rate_is_a_warning(training: dict[str, Any], optimizer: dict[str, Any]) -> None:
    rate = {"learning_rate": 1e-5} if training is FINETUNE and not optimizer else {}
    assert list(rate_warnings(config_of(training, optimizer=optimizer | rate))) == []
    assert training["type"] in SUPPORTED_TRAINING_TYPES


@pytest.mark.parametrize(
    ("by_steps", "by_epochs", "warned"),
    [
        (
            {"max_train_steps": 10, "save_every_n_steps": 10},
            EPOCHS | {"max_train_epochs": 2},
            "lr_warmup_steps (10) is not below {run}: the learning rate never gets to its full "
            "value",
        ),
        (
            {"max_train_steps": 20, "save_every_n_steps": 25},
            EPOCHS | {"max_train_epochs": 4, "save_every_n_epochs": 5},
            "save_every_n_{interval} is above {run}: only the end of the run is saved",
        ),
        (
            {"max_train_steps": 20, "save_every_n_steps": 5, "validate_every_n_steps": 25},
            EPOCHS | {"max_train_epochs": 4, "validate_every_n_epochs": 5},
            "validate_every_n_{interval} is above {run}: no validation images are made",
        ),
        (
            {"max_train_steps": 2_000_000, "save_every_n_steps": 5},
            EPOCHS | {"max_train_epochs": 400_000},
            "{run} is over 1,000,000 steps, more than any run needs; check the number",
        ),
    ],
)
def test_a_length_in_epochs_is_checked_as_one_in_steps(
    by_steps: dict[str, Any], by_epochs: dict[str, Any], warned: str
) -> None:
    """Ten images of two sizes make five steps, in batches of two."""
    prompts = {"validation_prompts": ["a cat"]} if "validate_every_n_steps" in by_steps else {}
    common = {"train_batch_size": 2, "lr_warmup_steps": 10, **prompts}
    config = config_of(FLUX, **common, **by_steps)
    run = f"max_train_steps ({config.max_train_steps})"
    assert list(schedule_warnings(config)) == [warned.format(run=run, interval="steps (25)")]
    assert count_warnings(config, [4, 6]) == []
    config, epochs = config_of(FLUX, **common, **by_epochs), by_epochs["max_train_epochs"]
    run = f"max_train_epochs ({epochs}; in steps: {epochs * 5:,})"
    interval = "epochs (5; in steps: 25)"
    assert list(schedule_warnings(config)) == []
    assert count_warnings(config, [4, 6]) == [warned.format(run=run, interval=interval)]


def test_steps_and_epochs_are_compared() -> None:
    values = {"max_train_steps": 9, "save_every_n_steps": None, "save_every_n_epochs": 2}
    config = config_of(FLUX, **values, lr_warmup_steps=0)
    assert list(schedule_warnings(config)) == []
    assert count_warnings(config, [5]) == [
        "save_every_n_epochs (2; in steps: 10) is above max_train_steps (9): only the end of the "
        "run is saved"
    ]
    assert count_warnings(config, [4]) == []


def test_more_accumulation_than_batches_is_a_warning() -> None:
    config = config_of(FLUX, gradient_accumulation_steps=4, lr_warmup_steps=0)
    [warning] = count_warnings(config, [2, 1])
    assert "steps (4) is above the number of batches of an epoch (3)" in warning
    assert count_warnings(config, [2, 2]) == []


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_steps_are_counted_as_the_trainer_plans_them(
    counts: list[int], batch_size: int, accumulation: int
) -> None:
    values = {"train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    sizes = [Size(64 + n, 64) for n, count in enumerate(counts) for _ in range(count)]
    plan = BatchPlan(sizes, batch_size, accumulation, StatelessRng(1))
    assert config_of(FLUX, **values).steps_per_epoch(counts) == plan.steps_per_epoch
