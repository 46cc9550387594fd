import pytest

from console.pages.form.draft import Draft
from console.pages.form.placeholders import with_placeholders
from routing.policy import TrainingType
from tasks.errors import InvalidJobError
from tasks.jobs.job import parse_job
from tasks.jobs.presets import preset, preset_names


@pytest.mark.parametrize("name", [*preset_names(), None])
@pytest.mark.parametrize("training_type", TrainingType)
def test_an_empty_form_can_be_estimated(name: str | None, training_type: str) -> None:
    if name is not None and preset(name)["training"]["type"] != training_type:
        return
    draft = Draft(training_type, name)
    assert parse_job(with_placeholders(draft)).training.type == training_type
    assert draft.own() == []


def test_only_the_dataset_is_filled_in_on_request() -> None:
    draft = Draft("SDXL_TEXTUAL_INVERSION", "sdxl_textual_inversion_1x16gb")
    with pytest.raises(InvalidJobError) as refused:
        parse_job(with_placeholders(draft, only_dataset=True))
    assert all(problem.missing for problem in refused.value.problems)


def test_a_start_that_is_filled_in_stays_the_only_one() -> None:
    draft = Draft("SDXL_TEXTUAL_INVERSION", "sdxl_textual_inversion_1x16gb")
    draft.set("initial_phrase", "a small cat")
    assert parse_job(with_placeholders(draft)).training.type == draft.training_type
