from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DoesNotFitJobError, InvalidJobError
from tasks.jobs.job import TrainingJob, parse_job
from tests.tasks.jobs.test_flux_lora import GOOD, with_values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_whatever_a_document_is_the_only_error_is_an_invalid_job(document: Any) -> None:
    with pytest.raises(InvalidJobError):
        parse_job(document)


@given(st.sampled_from(sorted(GOOD["training"])), JSON)
def test_whatever_an_option_is_it_is_taken_or_refused(name: str, value: Any) -> None:
    with suppress(InvalidJobError):
        parse_job(with_values(**{name: value}))


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a..b", "x" * 101, ".hidden", "a b", "a\n"])
def test_a_name_or_id_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidJobError, match="name"):
        parse_job({**GOOD, "name": name})
    with pytest.raises(InvalidJobError, match="id"):
        parse_job({**GOOD, "id": name})


@pytest.mark.parametrize("given_type", ["SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE"])
def test_a_type_that_is_planned_is_refused_as_not_built(given_type: str) -> None:
    with pytest.raises(InvalidJobError, match="not built yet"):
        parse_job(with_values(type=given_type))


def test_a_job_survives_its_way_through_json() -> None:
    job = parse_job(GOOD)
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job


def test_a_job_that_fits_no_class_is_refused_with_the_numbers() -> None:
    job = parse_job(with_values(train_batch_size=8, data_loader__resolution=1024))
    with pytest.raises(DoesNotFitJobError, match=r"needs about \d+.* GiB.*activations"):
        job.route()
