from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DoesNotFitJobError, InvalidJobError
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.options import training_options
from tests.tasks.jobs.test_flux_lora import GOOD, with_values
from tests.tasks.jobs.test_sdxl import EVERY

OPTIONS = {
    name: sorted({option.path for option in found.options if option.path != "type"})
    for name, found in training_options().items()
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_any_document_raises_only_invalid_job(document: Any) -> None:
    with pytest.raises(InvalidJobError):
        parse_job(document)


@given(st.sampled_from(sorted(GOOD["training"])), JSON)
def test_any_value_is_accepted_or_refused(name: str, value: Any) -> None:
    with suppress(InvalidJobError):
        parse_job(with_values(**{name: value}))


@given(st.data(), st.sampled_from(list(OPTIONS)), JSON)
def test_any_value_of_any_type_is_routed_or_refused(
    data: st.DataObject, training_type: str, value: Any
) -> None:
    [training] = [t for t in (*EVERY, GOOD["training"]) if t["type"] == training_type]
    path = data.draw(st.sampled_from(OPTIONS[training_type]))
    *folders, name = path.split(".")
    changed = place = deepcopy(training)
    for folder in folders:
        place[folder] = dict(place.get(folder) or {})
        place = place[folder]
    place[name] = value
    with suppress(InvalidJobError, DoesNotFitJobError):
        job = parse_job({"training": changed})
        assert TrainingJob.model_validate_json(job.model_dump_json()) == job
        job.training.warnings()
        job.route()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a..b", "x" * 101, ".hidden", "a b", "a\n"])
def test_an_unsafe_name_or_id_is_refused(name: str) -> None:
    with pytest.raises(InvalidJobError, match="name"):
        parse_job({**GOOD, "name": name})
    with pytest.raises(InvalidJobError, match="id"):
        parse_job({**GOOD, "id": name})


def test_a_refused_name_is_reported_with_the_rule() -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**GOOD, "tenant": "a b"})
    assert "tenant: must be letters, digits, '-' and '_'" in str(caught.value)
    assert "(got 'a b')" in str(caught.value)
    assert "pattern" not in str(caught.value)


@pytest.mark.parametrize("given_type", [None, "", "SD_LORA", "sdxl_lora", 1, ["FLUX_LORA"]])
def test_an_unknown_type_is_refused_with_the_known_ones(given_type: Any) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(with_values(type=given_type))
    assert f"training.type: {given_type!r} is not a training type" in str(caught.value)
    for known in ("SDXL_LORA", "SDXL_TEXTUAL_INVERSION", "SDXL_FINETUNE", "FLUX_LORA"):
        assert known in str(caught.value)


def test_a_job_round_trips_through_json() -> None:
    job = parse_job(GOOD)
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job


def test_a_job_that_fits_no_class_is_refused() -> None:
    job = parse_job(with_values(train_batch_size=8, data_loader__resolution=1024))
    with pytest.raises(DoesNotFitJobError, match=r"needs about \d+.* GiB.*activations"):
        job.route()


def nested(levels: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(levels):
        document = {"a": document}
    return document


def inside_itself() -> dict[str, Any]:
    document: dict[str, Any] = {}
    document["a"] = document
    return document


@pytest.mark.parametrize("preset", [None, "flux_1x40gb"])
@pytest.mark.parametrize(
    "value",
    [nested(900), nested(5000), inside_itself(), {(1, 2): 3}, 10**5000, "half \ud800"],
    ids=["deep", "deeper", "inside itself", "no text for a key", "long number", "half character"],
)
def test_what_json_cannot_hold_is_refused_briefly(value: Any, preset: str | None) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**with_values(seed=value), "preset": preset})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("lora_rank_dim", 10**400, "lora_rank_dim"),
        ("train_batch_size", 10**400, "train_batch_size"),
        ("seed", 2**63, "seed"),
        ("data_loader__resolution", 16 * 10**400, "data_loader.resolution"),
        ("data_loader__resolution", [16, 16 * 10**400], "data_loader.resolution.1"),
        ("data_loader__resolution", 16400, "data_loader.resolution"),
    ],
)
def test_huge_numbers_are_refused_by_their_field(name: str, value: Any, where: str) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(with_values(**{name: value}))
    assert f"training.{where}: " in str(caught.value)


def test_too_many_buckets_are_refused_quickly() -> None:
    sides = {"target_resolution": 16 * 10**12, "start_dim": 16, "end_dim": 16 * 10**12}
    with pytest.raises(InvalidJobError, match=r"aspect_ratio_buckets\.target_resolution"):
        parse_job(with_values(data_loader__aspect_ratio_buckets={**sides, "divisible_by": 16}))


@pytest.mark.parametrize("name", ["SEED", "AdamW", "int", "tuple[x]", "seeed"])
def test_an_unknown_option_is_named_as_spelled(name: str) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**with_values(**{name: 1}), name: 1})
    assert f"- {name}: is not an option" in str(caught.value)
    assert f"- training.{name}: is not an option" in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "field"),
    [
        ({"type": "ARCHIVE", "archive": "https://me:hidden@host/a.zip"}, "archive"),
        ({"type": "ARCHIVE", "archive": "https://hidden@host?x"}, "archive"),
        (
            {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "http://me:hidden@[/x"},
            "jsonl_path",
        ),
        (
            {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "s3://key:hidden@b/x"},
            "dataset_dir",
        ),
    ],
    ids=["password", "user", "no URL", "bucket"],
)
def test_credentials_in_a_url_are_refused_and_redacted(dataset: dict[str, Any], field: str) -> None:
    document = with_values()
    document["training"]["data_loader"]["dataset"] = dataset
    with pytest.raises(InvalidJobError) as error:
        parse_job(document)
    [problem] = error.value.problems
    assert problem.location == f"training.data_loader.dataset.{field}"
    assert "has a user or a password in it" in problem.message
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["https://host/a@b.zip", "https://host?by=me@host", "/images/a@b", "a@b://c"]
)
def test_a_url_may_have_an_at_sign_elsewhere(address: str) -> None:
    document = with_values()
    document["training"]["data_loader"]["dataset"] = {"type": "ARCHIVE", "archive": address}
    parse_job(document)


def test_a_missing_value_is_marked_as_missing() -> None:
    document = with_values(max_train_steps=None, lora_rank_dim=0)
    del document["training"]["data_loader"]["dataset"]
    with pytest.raises(InvalidJobError) as refused:
        parse_job(document)
    marks = {problem.location: problem.missing for problem in refused.value.problems}
    assert marks == {
        "training.data_loader.dataset": True,
        "training.lora_rank_dim": False,
        "training.max_train_epochs": True,
    }
