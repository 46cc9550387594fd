import pytest

from console.pages.form.controls import GROUPS, Control, Kind, controls, label_of_choice
from routing.policy import TrainingType
from tasks.jobs.options import training_options


def control(training_type: str, path: str) -> Control:
    return next(it for it in controls(training_type) if it.path == path)


@pytest.mark.parametrize("training_type", TrainingType)
def test_every_option_has_a_control_or_contains_others(training_type: str) -> None:
    there = {it.path for it in controls(training_type)}
    options = {it.path for it in training_options()[training_type].options}
    for path in options - there - {"type"}:
        assert any(it.startswith(f"{path}.") for it in there), path


@pytest.mark.parametrize("training_type", TrainingType)
def test_every_control_has_help_and_a_group(training_type: str) -> None:
    for found in controls(training_type):
        assert found.help
        assert found.group in GROUPS


def test_a_discriminator_is_a_choice_of_its_branches() -> None:
    assert control("FLUX_LORA", "optimizer.optimizer_type").choices == (
        "AdamW",
        "Prodigy",
        "Adafactor",
    )


@pytest.mark.parametrize(("training_type", "blocks"), [("FLUX_LORA", 57), ("SDXL_FINETUNE", 7)])
def test_gradient_checkpointing_is_off_on_auto_or_a_number(training_type: str, blocks: int) -> None:
    found = control(training_type, "gradient_checkpointing")
    numbers = [str(number) for number in range(blocks + 1)]
    assert found.kind == Kind.CHOICE
    assert [label_of_choice(choice) for choice in found.choices] == ["off", "on", "auto", *numbers]
    values = [found.read(choice) for choice in found.choices]
    assert [found.show(value) for value in values] == list(found.choices)


def test_a_nullable_choice_offers_null_first() -> None:
    assert control("FLUX_LORA", "quantization").choices == ("", "fp8", "int8", "nf4")


@pytest.mark.parametrize(
    ("path", "typed", "value"),
    [
        ("lora_rank_dim", " 16 ", 16),
        ("transformer_learning_rate", "4e-4", 4e-4),
        ("transformer_learning_rate", "", None),
        ("transformer_learning_rate", " 0,0004 ", 4e-4),
        ("guidance_scale", "1,5", 1.5),
        ("guidance_scale", "0,125", 0.125),
        ("train_text_encoder", True, True),
        ("validation_prompts", "a cat\n\n a dog \n", ["a cat", "a dog"]),
        ("data_loader.resolution", "[512, 768]", [512, 768]),
        ("gradient_checkpointing", "false", False),
        ("gradient_checkpointing", "auto", "auto"),
        ("gradient_checkpointing", "1", 1),
    ],
)
def test_typed_text_becomes_a_value(path: str, typed: object, value: object) -> None:
    assert control("FLUX_LORA", path).read(typed) == value


@pytest.mark.parametrize(
    ("path", "typed"),
    [
        ("lora_rank_dim", "many"),
        ("lora_rank_dim", ""),
        ("guidance_scale", "1,000"),
        ("guidance_scale", "1,000.5"),
        ("guidance_scale", "1,5,0"),
        ("max_train_steps", "1,5"),
        ("data_loader.resolution", "[" * 100_000),
    ],
)
def test_invalid_text_stays_as_typed(path: str, typed: str) -> None:
    assert control("FLUX_LORA", path).read(typed) == typed


@pytest.mark.parametrize("training_type", TrainingType)
def test_every_default_survives_showing_and_reading(training_type: str) -> None:
    for found in controls(training_type):
        if not found.required and found.kind != Kind.SWITCH:
            assert found.read(found.show(found.default)) == found.default, found.path
