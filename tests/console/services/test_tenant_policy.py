from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from console.services.tenant_policy import (
    FILES,
    HUB_NAMES,
    MODELS,
    NOT_THEIRS,
    PLACES,
    TenantPolicy,
)
from tasks.jobs.job import TrainingConfig, parse_job

# Texts that name no place: words of captions, columns and choices.
PLAIN = {
    "caption_column",
    "caption_prefix",
    "caption_templates",
    "class_caption",
    "dataset_config_name",
    "flux_lora_target_modules",
    "hf_variant",
    "image_column",
    "initial_phrase",
    "initializer_token",
    "instance_caption",
    "jsonl",
    "mask_column",
    "negative_validation_prompts",
    "placeholder_token",
    "sha256",
    "shuffle_caption_delimiter",
    "text_encoder_lora_target_modules",
    "unet_lora_target_modules",
    "validation_prompts",
}


def problems(
    training: dict[str, Any], roots: tuple[str, ...] = (), hosts: frozenset[str] = frozenset()
) -> list[str]:
    job = parse_job({"training": training})
    return [problem.location for problem in TenantPolicy(roots, hosts).problems(job)]


def flux(dataset: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    public = {"type": "ARCHIVE", "archive": "https://example.org/a.zip"}
    return {
        "type": "FLUX_LORA",
        "max_train_steps": 1,
        "save_every_n_steps": 1,
        "data_loader": {
            "type": "IMAGE_CAPTION_FLUX_DATA_LOADER",
            "dataset": dataset or public,
        },
        **more,
    }


def sdxl(**more: Any) -> dict[str, Any]:
    training = flux(type="SDXL_LORA", **more)
    return {
        **training,
        "data_loader": {**training["data_loader"], "type": "IMAGE_CAPTION_SD_DATA_LOADER"},
    }


def archive(place: str) -> dict[str, Any]:
    return flux({"type": "ARCHIVE", "archive": place})


def free_texts(schema: dict[str, Any]) -> Iterator[str]:
    """The names of all fields that take any text."""
    for model in schema["$defs"].values():
        for name, field in model.get("properties", {}).items():
            if takes_text(field):
                yield name


def takes_text(field: dict[str, Any]) -> bool:
    if field.get("type") == "string":
        return "enum" not in field and "const" not in field
    inner = [*field.get("anyOf", ()), field.get("items"), field.get("additionalProperties")]
    inner += field.get("patternProperties", {}).values()
    return any(takes_text(it) for it in inner if isinstance(it, dict))


def test_every_text_that_a_job_holds_is_a_place_or_is_known_to_be_none() -> None:
    known = PLACES | MODELS | FILES | HUB_NAMES | NOT_THEIRS
    assert not known & PLAIN
    adapter: TypeAdapter[BaseModel] = TypeAdapter(TrainingConfig)
    assert set(free_texts(adapter.json_schema())) == known | PLAIN


@pytest.mark.parametrize(
    "place",
    ["upload:" + "0" * 32, "https://example.org/a.zip?sig=1", "https://192.0.2.1/a.zip"],
)
def test_uploads_and_public_addresses_are_everybodys(place: str) -> None:
    # Whether an address is a public one is judged where it is asked for, name by name.
    assert problems(archive(place)) == []


@pytest.mark.parametrize(
    "place",
    [
        "/images/a.zip",
        "images/a.zip",
        "~/a.zip",
        "upload:../acme/1",
        "upload:" + "0" * 31,
        "file:///a.zip",
        "file:/a.zip",
        "FILE:///a.zip",
        "http://example.org/a.zip",
        "HTTP://example.org/a.zip",
        "HTTPS://example.org/a.zip",
        "s3://bucket/a.zip",
        "S3://bucket/a.zip",
        "gs://bucket/a.zip",
        "az://box/a.zip",
        "ftp://example.org/a.zip",
        "memory:///a.zip",
        "https://",
        "https:///a.zip",
        "https://[::1/a.zip",
        "https://intern.example/a.zip",
        "https://INTERN.example:443/a.zip",
        "https://other.example:8443/a.zip",
    ],
)
def test_whatever_else_holds_a_dataset_is_not(place: str) -> None:
    hosts = frozenset({"intern.example", "other.example:8443"})
    assert problems(archive(place), hosts=hosts) == ["training.data_loader.dataset.archive"]


@pytest.mark.parametrize(
    ("dataset", "field"),
    [
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/x"}, "dataset_dir"),
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "s3://b/x"}, "dataset_dir"),
        ({"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/x.jsonl"}, "jsonl_path"),
        (
            {"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": "a/b", "hf_cache_dir": "/x"},
            "hf_cache_dir",
        ),
        ({"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": "../b"}, "dataset_name"),
        ({"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": "/etc"}, "dataset_name"),
    ],
)
def test_no_kind_of_dataset_leads_to_this_machine(dataset: dict[str, Any], field: str) -> None:
    assert problems(flux(dataset)) == [f"training.data_loader.dataset.{field}"]


@pytest.mark.parametrize("model", ["black-forest-labs/FLUX.1-dev", "gpt2"])
def test_a_hub_id_is_everybodys(model: str) -> None:
    assert problems(flux(model=model)) == []


@pytest.mark.parametrize("model", ["/m", "./m", "../m/n", "a/b/c", "m/..", "~/m", "s3://b/m"])
def test_a_model_of_this_machine_is_not(model: str) -> None:
    assert problems(flux(model=model)) == ["training.model"]


def test_a_folder_that_is_called_like_a_hub_id_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "private").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert problems(flux(model="models/private")) == ["training.model"]


@pytest.mark.parametrize(
    ("training", "where"),
    [
        (flux(transformer_path="/x.safetensors"), "transformer_path"),
        (flux(text_encoder_1_path="/x.safetensors"), "text_encoder_1_path"),
        (flux(text_encoder_2_path="a/x.safetensors"), "text_encoder_2_path"),
        (flux(base_output_dir="uploads/zoo"), "base_output_dir"),
        (flux(base_output_dir="mine"), "base_output_dir"),
        (sdxl(vae_model="/vae"), "vae_model"),
        (
            sdxl(model="/m.safetensors", single_file_config="/m"),
            "model training.single_file_config",
        ),
        (sdxl(base_embeddings={"<cat>": "/c.safetensors"}), "base_embeddings.<cat>"),
    ],
)
def test_no_other_field_leads_to_this_machine(training: dict[str, Any], where: str) -> None:
    assert problems(training) == f"training.{where}".split()


def test_both_datasets_of_dreambooth_are_looked_at() -> None:
    loader = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "instance_caption": "a",
        "class_caption": "b",
        "instance_dataset": {"dataset_dir": "/a"},
        "class_dataset": {"dataset_dir": "/b"},
    }
    found = problems({**sdxl(), "data_loader": loader})
    assert found == [
        "training.data_loader.instance_dataset.dataset_dir",
        "training.data_loader.class_dataset.dataset_dir",
    ]


def test_what_the_operator_opens_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    roots = (f"{tmp_path}/open", "s3://bucket/people", "https://intern.example/data/")
    allowed = (
        f"{tmp_path}/open/a.zip",
        "s3://bucket/people/a.zip",
        "https://intern.example/data/a",
    )
    hosts = frozenset({"intern.example"})
    for place in allowed:
        assert problems(archive(place), roots, hosts) == [], place
    for place in (
        f"{tmp_path}/secret/a.zip",
        f"{tmp_path}/open/../secret/a.zip",
        f"{tmp_path}/open/link/a.zip",
        f"{tmp_path}/open2/a.zip",
        "s3://bucket/people2/a.zip",
        "s3://bucket/people/../a.zip",
        "s3://bucket/people/%2e%2e/a.zip",
        "https://intern.example/data/../secret",
        "https://intern.example/data/%2e%2e/secret",
        "https://intern.example/other",
        "https://intern.example.evil/data/a",
    ):
        denied = problems(archive(place), roots, hosts)
        # Another public host may be asked in any case.
        assert denied or place == "https://intern.example.evil/data/a", place
    assert problems(flux(model=f"{tmp_path}/open/m"), roots) == []
    assert problems(flux(transformer_path=f"{tmp_path}/open/t.safetensors"), roots) == []


def test_a_fault_says_what_may_be_named() -> None:
    job = parse_job({"training": archive("/x.zip")})
    [problem] = TenantPolicy(("/open",), frozenset()).problems(job)
    assert "upload:ID" in problem.message
    assert "/open" in problem.message
