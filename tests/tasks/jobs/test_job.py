from contextlib import suppress
from copy import deepcopy
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from tasks.errors import DoesNotFitJobError, InvalidJobError
from tasks.jobs.field_metadata import Location, marker_of, models_in
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
    problem = caught.value.problems[0]
    assert problem.location == "training.type"
    assert problem.message.startswith("must be one of 'SDXL_LORA', ")
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


def reported(training: dict[str, Any], **job: Any) -> dict[str, str]:
    """Return the messages about a job by their locations."""
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**job, "training": training})
    return {problem.location: problem.message for problem in caught.value.problems}


FOLDER = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/cats"}
SDXL: dict[str, Any] = {
    "type": "SDXL_LORA",
    "max_train_steps": 100,
    "save_every_n_steps": 50,
    "data_loader": {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": FOLDER},
}


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("seeed", "seed"),
        ("Max-Train-Steps", "max_train_steps"),
        ("batch_size", "train_batch_size"),
        ("data_loader.crop", "center_crop"),
        ("data_loader.dataset.dataset_dri", "dataset_dir"),
        ("data_loader.dataset.capton_column", "caption_column"),
        ("optimizer.learnig_rate", "learning_rate"),
    ],
)
def test_an_unknown_option_is_reported_with_the_near_one(option: str, near: str) -> None:
    *folders, name = option.split(".")
    training = place = deepcopy(SDXL)
    for folder in folders:
        place = place.setdefault(folder, {})
    place[name] = 1
    message = reported(training)[f"training.{option}"]
    assert message == f"is not an option; did you mean {near!r}?"


def test_an_option_in_the_wrong_place_is_reported_with_the_right_one() -> None:
    found = reported(SDXL | {"resolution": 512, "archive": "/a", "name": "cat"}, seed=1)
    places = {
        "seed": "training.seed?",
        "training.resolution": "training.data_loader.resolution?",
        "training.archive": "training.data_loader.dataset.archive or training.data_",
        "training.name": "name?",
    }
    assert set(found) == set(places)
    for location, place in places.items():
        assert found[location].startswith(f"is not an option here; did you mean {place}")


def test_an_option_of_another_type_is_reported_with_that_type() -> None:
    found = reported(SDXL | {"use_ema": True, "optimizer": {"beta2_decay": -1}})
    assert found == {
        "training.use_ema": "is not an option here, only with SDXL_FINETUNE",
        "training.optimizer.beta2_decay": "is not an option here, only with Adafactor",
    }


@pytest.mark.parametrize(
    ("given_type", "said"),
    [("SDXL_LROA", "did you mean 'SDXL_LORA'?"), (None, "(got null)"), ("", "(got '')")],
)
def test_the_rest_of_a_job_of_unknown_type_is_checked(given_type: Any, said: str) -> None:
    training = SDXL | {"type": given_type, "lora_rank_dim": 0, "seeed": 1, "lr_scheduler": "cosin"}
    training["optimizer"] = {"optimizer_type": "adamw", "beta1": 2}
    loader = {"type": "IMAGE_CAPTION", "dataset": {"dataset_dir": "", "type": "FOLDER"}}
    found = reported(training | {"data_loader": loader}, name="a b", priority=10)
    assert set(found) == {
        "name",
        "priority",
        "training.type",
        "training.lora_rank_dim",
        "training.seeed",
        "training.lr_scheduler",
        "training.optimizer.optimizer_type",
        "training.optimizer.beta1",
        "training.data_loader.type",
        "training.data_loader.dataset.type",
        "training.data_loader.dataset.dataset_dir",
    }
    assert said in found["training.type"]
    assert "did you mean 'cosine'?" in found["training.lr_scheduler"]
    assert "did you mean 'AdamW'?" in found["training.optimizer.optimizer_type"]


def test_a_missing_type_is_reported_with_the_rest() -> None:
    training = {key: value for key, value in SDXL.items() if key != "type"}
    dataset = {"dataset_dir": "/a", "keep_in_memory": "nay"}
    training["data_loader"] = {"dataset": dataset}
    found = reported(training | {"max_train_steps": -1})
    assert "it is one of SDXL_LORA, SDXL_TEXTUAL" in found.pop("training.type")
    assert "it is one of IMAGE_CAPTION_SD_DATA" in found.pop("training.data_loader.type")
    assert "ARCHIVE" in found.pop("training.data_loader.dataset.type")
    assert found == {
        "training.max_train_steps": "must be above 0 (got -1)",
        "training.data_loader.dataset.keep_in_memory": "must be true or false (got 'nay')",
    }


def test_an_unknown_preset_hides_no_other_problem() -> None:
    near = "did you mean 'sdxl_lora_1x24gb'?"
    for name, said in (("sdxl_lora_1x24g", near), ("mine", "_1x16gb")):
        found = reported({"lr_scheduler": "cosin"}, preset=name)
        assert set(found) - {"training.data_loader"} == {"preset", "training.lr_scheduler"}
        assert found["preset"].endswith(said)


def test_a_preset_of_another_type_explains_the_problems() -> None:
    found = reported({"type": "SDXL_FINETUNE"}, preset="sdxl_lora_1x24gb")
    assert found["training.type"].startswith(
        "is SDXL_FINETUNE, and the preset sdxl_lora_1x24gb is for SDXL_LORA"
    )
    assert "training.lora_rank_dim" in found


def test_a_job_without_training_is_reported_with_what_to_write() -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({"name": "a b", **SDXL, "seed": -1})
    found = {problem.location: problem.message for problem in caught.value.problems}
    assert found["training"].startswith("is missing; put it above type, max_train_steps, ")
    assert set(found) == {"training", "training.seed", "name"}
    with pytest.raises(InvalidJobError) as caught:
        parse_job({"name": "a b"})
    assert [problem.location for problem in caught.value.problems] == ["training", "name"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_train_steps", -5, "must be above 0 (got -5)"),
        ("max_train_steps", 1e3, "must be a whole number; write 1000 (got 1000.0)"),
        ("max_train_steps", "1_000", "must be a whole number; write 1000 (got '1_000')"),
        ("max_train_steps", "many", "must be a whole number (got 'many')"),
        ("seed", True, "must be a whole number (got true)"),
        ("seed", 10**30, f"must be at most {2**63 - 1} (got {10**30})"),
        ("unet_learning_rate", "fast", "must be a number (got 'fast')"),
        ("unet_learning_rate", True, "must be a number (got true)"),
        ("unet_learning_rate", float("inf"), "must be a finite number (got inf)"),
        ("train_unet", "Flase", "must be true or false (got 'Flase')"),
        ("train_unet", "False", "must be true or false; write false (got 'False')"),
        ("train_unet", "on", "must be true or false; write true (got 'on')"),
        ("validation_prompts", "a cat", "must be a list; write [\"a cat\"] (got 'a cat')"),
        ("base_embeddings", "a", "must be a mapping (name: value) (got 'a')"),
        ("optimizer", "Prodigy", "must be a mapping (name: value) (got 'Prodigy')"),
        ("hf_variant", {"a": "b"}, "must be text; put text that has ': ' in it in quotes"),
        ("hf_variant", 16, "must be text; put it in quotes (got 16)"),
        ("model", "", "must not be empty (got '')"),
    ],
)
def test_a_wrong_value_is_reported_in_plain_words(option: str, value: Any, message: str) -> None:
    assert reported(SDXL | {option: value})[f"training.{option}"] == message


@pytest.mark.parametrize(
    "value", ["768,768", "768x768", "768", 64.0, [768], [64.0, 64], ["768", "768"], [1, 2, 3], True]
)
def test_a_wrong_resolution_is_reported_once_with_the_right_forms(value: Any) -> None:
    training = SDXL | {"data_loader": {**SDXL["data_loader"], "resolution": value}}
    [(location, message)] = reported(training).items()
    assert location == "training.data_loader.resolution"
    assert "such as 768" in message
    assert "[height, width], such as [768, 1024]" in message
    assert len(message) < 200


@pytest.mark.parametrize("value", ["false", "off", "1", 0, 1])
def test_only_true_and_false_are_booleans(value: Any) -> None:
    fields = [it for model in _all_models(TrainingJob) for it in model.model_fields.items()]
    booleans = [field for _, field in fields if field.annotation is bool]
    assert len(booleans) > 20
    for field in booleans:
        with pytest.raises(ValidationError):
            TypeAdapter(Annotated[bool, *field.metadata]).validate_python(value)


@pytest.mark.parametrize("ending", [".safetensors", ".SafeTensors", ".ckpt", ".pt"])
def test_a_name_with_an_ending_is_refused_with_the_right_name(ending: str) -> None:
    with pytest.raises(InvalidJobError, match=r"write my\.cat, without the ending"):
        parse_job({"name": f"my.cat{ending}", "training": SDXL})
    parse_job({"name": "my.cat", "id": f"my.cat{ending}", "training": SDXL})


def test_no_path_depends_on_a_home() -> None:
    paths = [
        (name, model)
        for model in _all_models(TrainingJob)
        for name, field in model.model_fields.items()
        if marker_of(field, Location) in PATHS
    ]
    assert {"model", "vae_model", "transformer_path", "dataset_dir"} <= {name for name, _ in paths}
    for name, model in paths:
        text = "~/a.safetensors"
        with pytest.raises(ValidationError) as caught:
            model.model_validate({name: {"<a>": text} if name == "base_embeddings" else text})
        assert "begins with '~'" in str(caught.value), name


ADDRESSES = {Location.HUB_DATASET, Location.HUB_REPO, Location.BUCKET, Location.SECRET}
PATHS = set(Location) - ADDRESSES - {Location.NONE, Location.STORE_FOLDER}


def _all_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    inner = {m for field in model.model_fields.values() for m in models_in(field.annotation)}
    return {model}.union(*map(_all_models, inner))


@pytest.mark.parametrize(
    "name", ["/cats", "./cats", "../b", "~/cats", "a/b/c", "https://hf.co/a/b"]
)
def test_a_dataset_on_the_hub_has_an_id(name: str) -> None:
    dataset = {"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": name}
    found = reported(SDXL | {"data_loader": {**SDXL["data_loader"], "dataset": dataset}})
    assert "is not a Hub id" in found["training.data_loader.dataset.dataset_name"]


def test_labels_and_metadata_are_kept() -> None:
    labels = {"customer": "17", "team/name": "a.b-c_d", "empty": ""}
    metadata = {"order": [1, 2.5, None, {"any": True}], "name": "wörld"}
    job = parse_job({**GOOD, "labels": labels, "metadata": metadata})
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job
    assert (job.labels, job.metadata) == (labels, metadata)


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"-a": "x"},
        {"a b": "x"},
        {"a": "x/y"},
        {"a": "x\n"},
        {"a": "ü"},
        {"a" * 64: "x"},
        {"a": "x" * 64},
        {"a": 17},
        {str(number): "" for number in range(33)},
    ],
)
def test_labels_beyond_the_rules_are_refused(labels: Any) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**GOOD, "labels": labels})
    assert {problem.location.partition(".")[0] for problem in caught.value.problems} == {"labels"}


@pytest.mark.parametrize(
    "metadata",
    [{"a": "x" * 4100}, nested(9), [1], {"a": float("nan")}],
    ids=["big", "deep", "list", "nan"],
)
def test_metadata_beyond_its_bounds_is_refused(metadata: Any) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**GOOD, "metadata": metadata})
    assert [problem.location for problem in caught.value.problems] == ["metadata"]


def test_labels_change_no_other_part_of_a_job() -> None:
    plain, labelled = (
        parse_job(GOOD),
        parse_job({**GOOD, "labels": {"a": "b"}, "metadata": {"x": 1}}),
    )
    assert plain.training == labelled.training
    assert plain.route() == labelled.route()
