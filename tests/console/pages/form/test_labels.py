from collections import Counter

import pytest

from console.pages.form.controls import controls
from console.pages.form.draft import Draft
from console.pages.form.labels import LABELS, in_labels, label_of
from routing.policy import TrainingType


@pytest.mark.parametrize("training_type", TrainingType)
def test_every_option_of_the_form_has_a_label(training_type: str) -> None:
    assert [it.path for it in controls(training_type) if it.path not in LABELS] == []


@pytest.mark.parametrize("training_type", TrainingType)
def test_options_that_are_shown_together_have_different_labels(training_type: str) -> None:
    shown = [it.path for it in Draft(training_type).controls() if "dataset." not in it.path]
    counts = Counter(LABELS[path] for path in shown)
    assert [label for label, count in counts.items() if count > 1] == []


def test_every_label_is_of_an_option() -> None:
    known = {it.path for training_type in TrainingType for it in controls(training_type)}
    known |= {"name", "preset", "priority", "labels", "training", "type"}
    # Options that only contain others.
    known |= {path.rpartition(".")[0] for path in known}
    # DreamBooth's images come from fewer sources, with the same labels.
    assert {path for path in LABELS if "instance_dataset." not in path} <= known


@pytest.mark.parametrize(
    ("location", "label"),
    [
        ("training.lora_rank_dim", "LoRA rank"),
        ("data_loader.resolution", "Resolution"),
        ("name", "Name"),
        ("training.validation_prompts.2", "Sample prompts, 3"),
        ("cat.png", "cat.png"),
    ],
)
def test_locations_are_labelled(location: str, label: str) -> None:
    assert label_of(location) == label


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("set max_train_epochs or max_train_steps", "set “Epochs” or “Steps”"),
        ("set a smaller lora_rank_dim.", "set a smaller “LoRA rank”."),
        ("data_loader.resolution is below", "“Resolution” is below"),
        ("the model must be of a type", "the model must be of a type"),
        ("no file max_train_steps.png, cat_1.jpg", "no file max_train_steps.png, cat_1.jpg"),
    ],
)
def test_messages_name_options_by_their_labels(message: str, text: str) -> None:
    assert in_labels(message) == text
