from pathlib import Path
from typing import Any, Literal

import pytest

from console.services.jobs.tenant_policy import TenantPolicy
from tasks.jobs.job import parse_job
from tasks.strict_model import StrictModel


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


class Unmarked(StrictModel):
    folder: str = "/etc"
    choice: Literal["a", "b"] = "a"
    parts: tuple[str, ...] = ("/etc/passwd",)


def test_an_unmarked_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    job = parse_job({"training": flux()})
    object.__setattr__(job.training, "optimizer", Unmarked())
    found = TenantPolicy(("/etc",), frozenset()).problems(job)
    assert [problem.location for problem in found] == [
        "training.optimizer.folder",
        "training.optimizer.parts",
    ]


def test_destinations_with_the_tenants_own_secrets_are_allowed() -> None:
    hub = {"type": "HUB", "hub_model_id": "me/lamp", "hub_token": "mine"}
    bucket = {"type": "BUCKET", "bucket_url": "s3://people/a", "bucket_credentials": "mine"}
    job = parse_job({"training": flux(report_to="wandb"), "publish_to": [hub, bucket]})
    assert TenantPolicy((), frozenset()).problems(job) == []


def test_an_unmarked_text_of_a_destination_is_refused() -> None:
    job = parse_job({"training": flux()})
    object.__setattr__(job, "publish_to", (Unmarked(),))
    found = TenantPolicy(("/etc",), frozenset()).problems(job)
    assert [problem.location for problem in found] == [
        "publish_to.0.folder",
        "publish_to.0.parts",
    ]


@pytest.mark.parametrize(
    "place",
    ["upload:" + "0" * 32, "https://example.org/a.zip?sig=1", "https://192.0.2.1/a.zip"],
)
def test_uploads_and_public_addresses_are_allowed(place: str) -> None:
    # Whether an address is public is checked at download, name by name.
    assert problems(archive(place)) == []


@pytest.mark.parametrize(
    "place",
    [
        "/images/a.zip",
        "images/a.zip",
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
def test_other_dataset_locations_are_refused(place: str) -> None:
    hosts = frozenset({"intern.example", "other.example:8443"})
    assert problems(archive(place), hosts=hosts) == ["training.data_loader.dataset.archive"]


@pytest.mark.parametrize(
    ("dataset", "field"),
    [
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/x"}, "dataset_dir"),
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "s3://b/x"}, "dataset_dir"),
        ({"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/x.jsonl"}, "jsonl_path"),
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "upload:" + "0" * 32}, "dataset_dir"),
        (
            {"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": "a/b", "hf_cache_dir": "/x"},
            "hf_cache_dir",
        ),
    ],
)
def test_no_kind_of_dataset_reads_this_machine(dataset: dict[str, Any], field: str) -> None:
    assert problems(flux(dataset)) == [f"training.data_loader.dataset.{field}"]


@pytest.mark.parametrize("model", ["black-forest-labs/FLUX.1-dev", "gpt2"])
def test_a_hub_id_is_allowed(model: str) -> None:
    assert problems(flux(model=model)) == []


@pytest.mark.parametrize("model", ["/m", "./m", "../m/n", "a/b/c", "m/..", "s3://b/m"])
def test_a_local_model_is_refused(model: str) -> None:
    assert problems(flux(model=model)) == ["training.model"]


def test_a_local_folder_named_like_a_hub_id_is_refused(
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
        (flux(base_output_dir="outputs/zoo"), "base_output_dir"),
        (flux(base_output_dir="mine"), "base_output_dir"),
        (sdxl(vae_model="/vae"), "vae_model"),
        (
            sdxl(model="/m.safetensors", single_file_config="/m"),
            "model training.single_file_config",
        ),
        (sdxl(base_embeddings={"<cat>": "/c.safetensors"}), "base_embeddings.<cat>"),
    ],
)
def test_no_other_option_reads_this_machine(training: dict[str, Any], where: str) -> None:
    assert problems(training) == f"training.{where}".split()


def test_both_datasets_of_dreambooth_are_checked() -> None:
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


def test_locations_below_the_roots_are_allowed(tmp_path: Path) -> None:
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
        # Any other public host is allowed.
        assert denied or place == "https://intern.example.evil/data/a", place
    assert problems(flux(model=f"{tmp_path}/open/m"), roots) == []
    assert problems(flux(transformer_path=f"{tmp_path}/open/t.safetensors"), roots) == []


def test_a_problem_says_what_is_allowed() -> None:
    job = parse_job({"training": archive("/x.zip")})
    [problem] = TenantPolicy(("/open",), frozenset()).problems(job)
    assert "upload:ID" in problem.message
    assert "/open" in problem.message
