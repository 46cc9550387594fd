"""The model card, of texts that users chose."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.destinations.model_card import model_card, settings_file
from tasks.jobs.destinations import HubDestination
from tests.tasks.destinations.made import job_of, results_of

HOSTILE = (
    "x\n---\nlicense: mit\n# <script>alert(1)</script> [a](http://evil) `b` @all https://c | d"
)


def card_of(document: dict[str, Any], folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    results = results_of(job_of(document), folder)
    destination = HubDestination(hub_model_id="me/lamp", hub_token="mine", **options)
    card = model_card(results, destination)
    begin, header, page = card.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(header), page


def test_hostile_texts_stay_texts(job_document: dict[str, Any], tmp_path: Path) -> None:
    job = job_of(job_document)
    loader = job.training.loader.model_copy(update={"caption_prefix": HOSTILE})
    training = job.training.model_copy(
        update={"validation_prompts": (HOSTILE,), "data_loader": loader}
    )
    results = results_of(job.model_copy(update={"training": training}), tmp_path)
    destination = HubDestination(hub_model_id="me/lamp", hub_token="mine")
    _, header, page = model_card(results, destination).split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["license"] == "other"
    assert metadata["widget"][0]["text"] == HOSTILE.replace("\n", "\\n")
    # Without what a backslash makes plain text.
    markup = re.sub(r"\\.", "", page)
    for part in ("<script", "](http", "`b`", "@all", "https://", "\n# x"):
        assert part not in markup
    assert "<Gallery />" in markup


def test_the_trigger_is_the_prompt_of_an_instance(
    job_document: dict[str, Any], tmp_path: Path
) -> None:
    metadata, page = card_of(job_document, tmp_path)
    trigger = job_of(job_document).training.trigger_phrase
    assert metadata.get("instance_prompt") == trigger
    assert trigger is not None
    assert "## Trigger word" in page


def test_a_license_may_be_chosen(job_document: dict[str, Any], tmp_path: Path) -> None:
    metadata, _ = card_of(job_document, tmp_path, license="cc-by-4.0")
    assert metadata["license"] == "cc-by-4.0"
    assert "license_name" not in metadata


@pytest.mark.parametrize(
    ("model", "license"),
    [
        ("black-forest-labs/FLUX.1-schnell", "apache-2.0"),
        ("black-forest-labs/FLUX.1-Krea-dev", "other"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++"),
        ("someone/model", None),
    ],
)
def test_the_license_is_that_of_the_base_model(
    job_document: dict[str, Any], tmp_path: Path, model: str, license: str | None
) -> None:
    job = job_of(job_document)
    training = job.training.model_copy(update={"model": model})
    results = results_of(job.model_copy(update={"training": training}), tmp_path)
    destination = HubDestination(hub_model_id="me/lamp", hub_token="mine")
    metadata = yaml.safe_load(model_card(results, destination).split("---\n")[1])
    assert metadata.get("license") == license


def test_no_path_of_the_fleet_is_published(job_document: dict[str, Any], tmp_path: Path) -> None:
    job = job_of(job_document)
    training = job.training.model_copy(update={"model": "/mnt/models/secret-project"})
    results = results_of(job.model_copy(update={"training": training}), tmp_path)
    destination = HubDestination(hub_model_id="me/lamp", hub_token="mine")
    texts = model_card(results, destination) + settings_file(results).decode()
    assert "secret-project" not in texts
    assert str(tmp_path) not in texts
    options = json.loads(settings_file(results))["training"]
    assert options["lora_rank_dim"] == job.training.model_dump()["lora_rank_dim"]
