import re
from copy import deepcopy
from typing import Any

import pytest

from routing.policy import TrainingType
from tasks.errors import InvalidJobError
from tasks.jobs.job import parse_job
from tasks.jobs.options import training_options

# How pydantic speaks to programmers.
OF_PYDANTIC = re.compile(
    r"Input should|should be|valid (number|integer|string|boolean|list|dict)|Field required"
    r"|Extra inputs|unable to parse|Value error|Assertion"
)
DATASET = {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}}


def with_every_option(training_type: str, value: Any) -> dict[str, Any]:
    """A job in which every option has this value, but for those that select others."""
    training: dict[str, Any] = {}
    for option in training_options()[training_type].options:
        for path, it in [(option.path, value), *option.only_with.items()]:
            place = training
            *folders, last = path.split(".")
            for folder in folders:
                if not isinstance(place.get(folder), dict):
                    place[folder] = {}
                place = place[folder]
            place[last] = deepcopy(it)
    return {"training": {**training, "type": training_type}}


@pytest.mark.parametrize("training_type", TrainingType)
@pytest.mark.parametrize("value", ["1,5", 1.5, True, [], {"a": 1}, -1], ids=repr)
def test_problems_are_in_plain_words(training_type: str, value: Any) -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_job(with_every_option(training_type, value))
    problems = refused.value.problems
    assert len(problems) > 10
    assert [it.message for it in problems if OF_PYDANTIC.search(it.message)] == []


@pytest.mark.parametrize("training", [{"lora_rank": 4}, {"type": "FLUX", "lora_rank": 4}])
def test_a_missing_or_wrong_type_hides_no_other_problem(training: dict[str, Any]) -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_job({"presett": "flux", "training": training})
    found = {problem.location: problem.message for problem in refused.value.problems}
    assert "training.type" in found
    assert "did you mean 'lora_rank_dim'?" in found["training.lora_rank"]
    assert "did you mean 'preset'?" in found["presett"]


def test_an_option_one_level_too_high_is_recognized() -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_job({"preset": "flux_lora_1x40gb", "training": {}, "lora_rank": 4})
    found = {problem.location: problem.message for problem in refused.value.problems}
    assert "did you mean 'training.lora_rank_dim'?" in found["lora_rank"]


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("lora_rank_dim", 9_999_999, "1024"),
        ("train_batch_size", 5000, "1024"),
        ("gradient_accumulation_steps", 10**6, "10000"),
    ],
)
def test_slips_of_the_finger_are_refused(option: str, value: int, bound: str) -> None:
    job = {"preset": "flux_lora_1x40gb", "training": {option: value, "data_loader": DATASET}}
    with pytest.raises(InvalidJobError) as refused:
        parse_job(job)
    [problem] = refused.value.problems
    assert (problem.location, problem.code) == (f"training.{option}", "out_of_range")
    assert f"must be at most {bound}" in problem.message


def test_a_rank_that_does_not_fit_is_named() -> None:
    training = {"lora_rank_dim": 1024, "gradient_checkpointing": False, "data_loader": DATASET}
    job = parse_job({"preset": "flux_lora_1x40gb", "training": training})
    assert job.training.savings()[0] == "a smaller lora_rank_dim"
    usual = parse_job({"preset": "flux_lora_1x40gb", "training": {"data_loader": DATASET}})
    assert not any("rank" in option for option in usual.training.savings())
