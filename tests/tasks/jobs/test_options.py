import json
from typing import Any

import pytest

from routing.policy import TrainingType
from tasks.jobs.data_loaders import (
    DreamboothSDDataLoaderConfig,
    ImageCaptionSDDataLoaderConfig,
)
from tasks.jobs.datasets import ImageDirDatasetConfig
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.optimizers import ProdigyOptimizerConfig
from tasks.jobs.options import Option, training_options
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig, SdxlTextualInversionConfig

OPTIONS = training_options()
CONFIGS = (SdxlLoraConfig, SdxlTextualInversionConfig, SdxlFinetuneConfig, FluxLoraConfig)


def option(training_type: str, path: str, **only_with: str) -> Option:
    wanted = {key.replace("__", "."): value for key, value in only_with.items()}
    [found] = [
        option
        for option in OPTIONS[training_type].options
        if option.path == path and option.only_with == wanted
    ]
    return found


def test_types_are_in_the_order_of_the_models() -> None:
    assert list(OPTIONS) == list(TrainingType)


@pytest.mark.parametrize("config", CONFIGS)
def test_options_are_in_the_order_of_the_fields(config: Any) -> None:
    listed = OPTIONS[config.model_fields["type"].default].options
    assert [o.path for o in listed if "." not in o.path] == list(config.model_fields)
    for name, field in config.model_fields.items():
        found = next(o for o in listed if o.path == name)
        assert (found.default is None) == field.is_required()
        assert found.description == " ".join(str(field.description).split())


@pytest.mark.parametrize("training_type", OPTIONS)
def test_every_option_is_listed_once_and_described(training_type: str) -> None:
    listed = OPTIONS[training_type].options
    keys = [(o.path, *o.only_with.items()) for o in listed]
    assert len(keys) == len(set(keys))
    assert all(o.type and o.description and "\n" not in o.description for o in listed)
    for found in listed:
        if found.default is not None:
            json.loads(found.default)


def test_branches_of_a_union_are_listed_separately() -> None:
    prodigy = [
        o.path.removeprefix("optimizer.")
        for o in OPTIONS["FLUX_LORA"].options
        if o.only_with == {"optimizer.optimizer_type": "Prodigy"}
    ]
    assert prodigy == list(ProdigyOptimizerConfig.model_fields)
    for loader in (ImageCaptionSDDataLoaderConfig, DreamboothSDDataLoaderConfig):
        selected = {"data_loader.type": loader.model_fields["type"].default}
        within = [
            o.path.removeprefix("data_loader.")
            for o in OPTIONS["SDXL_LORA"].options
            if o.only_with == selected
        ]
        assert [path for path in within if "." not in path] == list(loader.model_fields)
    folder = [
        o.path.rpartition(".")[2]
        for o in OPTIONS["SDXL_TEXTUAL_INVERSION"].options
        if o.only_with == {"data_loader.dataset.type": "IMAGE_DIR_DATASET"}
    ]
    assert folder == list(ImageDirDatasetConfig.model_fields)


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("max_train_steps", "whole number above 0 or null", "null"),
        ("quantization", '"fp8" or "int8" or "nf4" or null', "null"),
        ("optimizer", "mapping: AdamW or Prodigy or Adafactor", '{"optimizer_type": "AdamW"}'),
        ("clip_tokenizer_max_length", "whole number from 2 to 77", "77"),
        ("validation_prompts", "list of text", "[]"),
        ("cache_vae_outputs", "true or false", "false"),
        ("data_loader", "mapping", None),
        ("data_loader.aspect_ratio_buckets.end_dim", "whole number above 0 to 16384", None),
    ],
)
def test_types_and_defaults_are_in_words(path: str, kind: str, default: str | None) -> None:
    found = option("FLUX_LORA", path)
    assert (found.type, found.default) == (kind, default)


def test_a_mapping_has_its_own_type() -> None:
    assert option("SDXL_LORA", "base_embeddings").type == "mapping of text to text"
    beta1 = option("SDXL_LORA", "optimizer.beta1", optimizer__optimizer_type="AdamW")
    assert (beta1.type, beta1.default) == ("number from 0 below 1", "0.9")
