from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.jobs.field_metadata import (
    ActsIf,
    Affects,
    Location,
    PlainText,
    affects,
    fields_with,
    inert_options,
    marker_of,
    models_in,
    options_of,
    takes_free_text,
)
from tasks.jobs.job import TrainingJob, parse_job
from tasks.strict_model import StrictModel
from tests.tasks.jobs.test_flux_lora import GOOD
from tests.tasks.jobs.test_sdxl import EVERY

# What each free text of a job names. A new one is written down here, too: a wrong marker lets a
# tenant name files of the worker.
LOCATIONS = {
    Location.DATASET: {"dataset_dir", "jsonl_path"},
    Location.ARCHIVE: {"archive"},
    Location.BASE_MODEL: {"model", "single_file_config", "vae_model"},
    Location.FILE: {
        "transformer_path",
        "text_encoder_1_path",
        "text_encoder_2_path",
        "initial_embedding_file",
        "base_embeddings",
    },
    Location.HUB_DATASET: {"dataset_name"},
    Location.CACHE_FOLDER: {"hf_cache_dir"},
    Location.STORE_FOLDER: {"base_output_dir"},
    Location.HUB_REPO: {"hub_model_id"},
    Location.BUCKET: {"bucket_url"},
    Location.SECRET: {"bucket_credentials", "hub_token"},
    Location.NONE: {
        "caption_column",
        "caption_prefix",
        "caption_templates",
        "class_caption",
        "dataset_config_name",
        "flux_lora_target_modules",
        "hf_variant",
        "id",
        "image_column",
        "initial_phrase",
        "initializer_token",
        "instance_caption",
        "jsonl",
        "labels",
        "license",
        "mask_column",
        "metadata",
        "name",
        "negative_validation_prompts",
        "placeholder_token",
        "preset",
        "sha256",
        "shuffle_caption_delimiter",
        "tenant",
        "text_encoder_lora_target_modules",
        "trigger_word",
        "unet_lora_target_modules",
        "url",
        "validation_prompts",
    },
}
# What may differ between a checkpoint and the run that resumes from it.
NO_NUMBER = {
    "base_output_dir",
    "max_checkpoints",
    "save_every_n_steps",
    "save_every_n_epochs",
    "validate_every_n_steps",
    "validate_every_n_epochs",
    "validate_at_start",
    "validation_prompts",
    "negative_validation_prompts",
    "num_validation_images_per_prompt",
    "enable_cpu_offload_during_validation",
    "gradient_checkpointing",
    "lora_checkpoint_format",
    "save_checkpoint_format",
    "save_dtype",
    "report_to",
    "dataset",
    "instance_dataset",
    "class_dataset",
    "dataloader_num_workers",
}
CACHED_TEXT = {"weight_dtype", "clip_tokenizer_max_length", "t5_tokenizer_max_length"}
CACHE_ENTRIES = CACHED_TEXT | {
    "model",
    "single_file_config",
    "hf_variant",
    "vae_model",
    "base_embeddings",
    "text_encoder_1_path",
    "text_encoder_2_path",
    "validation_prompts",
    "negative_validation_prompts",
    "cache_text_encoder_outputs",
    "cache_vae_outputs",
    "caption_prefix",
    "trigger_word",
    "instance_caption",
    "class_caption",
    "random_flip",
}


def all_fields(model: type[BaseModel] = TrainingJob) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every field of a job, of every type and branch."""
    for name, field in model.model_fields.items():
        yield name, field
        for inner in models_in(field.annotation):
            yield from all_fields(inner)


FIELDS = list(all_fields())


def test_every_free_text_has_exactly_one_location() -> None:
    found = defaultdict(set)
    for name, field in FIELDS:
        if takes_free_text(field.annotation):
            location = marker_of(field, Location)
            assert location is not None, f"{name} takes any text: mark what it names"
            found[location].add(name)
    assert found == LOCATIONS


def test_options_of_one_name_have_one_location() -> None:
    by_name = defaultdict(set)
    for name, field in FIELDS:
        by_name[name].add(marker_of(field, Location))
    assert not {name: found for name, found in by_name.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("effect", "names"),
    [
        (Affects.NO_NUMBER, NO_NUMBER),
        (Affects.CACHED_TEXT, CACHED_TEXT),
        (Affects.CACHE_ENTRIES, CACHE_ENTRIES),
    ],
)
def test_what_options_affect(effect: Affects, names: set[str]) -> None:
    marked = {name for name, field in FIELDS if affects(field, effect)}
    unmarked = {name for name, field in FIELDS if not affects(field, effect)}
    assert marked == names
    assert not marked & unmarked, "an option that is redeclared lost its marker"


@pytest.mark.parametrize("training", [GOOD["training"], *EVERY], ids=lambda it: it["type"])
def test_every_condition_works_on_every_config(training: dict[str, Any]) -> None:
    config = parse_job({"training": training}).training
    conditions = [
        acts
        for option in options_of(config)
        if (acts := marker_of(option.field, ActsIf)) is not None
    ]
    assert len(conditions) > 5
    for acts in conditions:
        acts.condition(config)
        acts.otherwise.format(config=config)


def test_a_redeclared_option_keeps_its_condition() -> None:
    by_name = defaultdict(set)
    for name, field in FIELDS:
        by_name[name].add(marker_of(field, ActsIf) is not None)
    assert not {name for name, found in by_name.items() if len(found) > 1}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, True),
        (str | None, True),
        (tuple[str, ...], True),
        (dict[str, int], True),
        (Annotated[str, Location.FILE], True),
        (Any, True),
        (object, True),
        (bytes, True),
        (Literal["a"], False),
        (Literal["a"] | None, False),
        (int | float | bool | None, False),
        (tuple[int, ...], False),
        (StrictModel, False),
        (Location, False),
    ],
)
def test_unknown_types_count_as_free_text(annotation: Any, expected: bool) -> None:
    assert takes_free_text(annotation) is expected


class Inner(StrictModel):
    kept: int = 1
    dropped: Annotated[int, Affects.NO_NUMBER] = 2
    inert: Annotated[int, ActsIf(lambda config: config.acts, "acts is {config.acts}")] = 3


class Outer(StrictModel):
    acts: bool = False
    inner: Inner = Inner()
    more: tuple[Inner, ...] = ()
    text: PlainText | None = None


def test_markers_are_found_at_any_depth() -> None:
    config = Outer(more=(Inner(),))
    assert [it.path for it in options_of(config) if affects(it.field, Affects.NO_NUMBER)] == [
        "inner.dropped",
        "more.0.dropped",
    ]
    assert fields_with(config, Affects.NO_NUMBER) == {"inner": {"dropped": True}}
    assert marker_of(Outer.model_fields["text"], Location) is Location.NONE
    assert marker_of(Outer.model_fields["acts"], Location) is None


def test_contradicting_markers_are_an_error() -> None:
    class Wrong(StrictModel):
        path: Annotated[PlainText | None, Location.FILE] = None

    with pytest.raises(TypeError, match="one marker is allowed"):
        marker_of(Wrong.model_fields["path"], Location)


def test_only_given_options_are_reported_as_inert() -> None:
    assert inert_options(Outer()) == []
    assert inert_options(Outer(inner=Inner(inert=0))) == []
    assert inert_options(Outer(acts=True, inner=Inner(inert=3))) == []
    assert inert_options(Outer(inner=Inner(inert=3))) == [
        "inner.inert has no effect: acts is False"
    ]
