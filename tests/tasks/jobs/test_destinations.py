"""Where results may be copied, as jobs write it."""

from typing import Any

import pytest

from tasks.errors import InvalidJobError
from tasks.jobs.job import parse_job

HUB = {"type": "HUB", "hub_model_id": "me/lamp", "hub_token": "mine"}
BUCKET = {"type": "BUCKET", "bucket_url": "s3://people/acme", "bucket_credentials": "mine"}
PASTED = "hf_abcdefghijklmnopqrstuvwxyz"


def test_a_repository_is_private_unless_the_job_asks(job_document: dict[str, Any]) -> None:
    job = parse_job({**job_document, "publish_to": [HUB, BUCKET]})
    first = job.publish_to[0]
    assert first.type == "HUB"
    assert first.hub_private_repo


@pytest.mark.parametrize(
    ("changes", "location", "message"),
    [
        ({"hub_model_id": "lamp"}, "hub_model_id", "the form is owner/name"),
        ({"hub_model_id": "me/a--b"}, "hub_model_id", "the form is owner/name"),
        ({"hub_model_id": "me/lamp.git"}, "hub_model_id", "the form is owner/name"),
        ({"hub_model_id": "me/../lamp"}, "hub_model_id", "the form is owner/name"),
        ({"hub_token": PASTED}, "hub_token", "never the secret itself"),
        ({"hub_token": "../zoo/mine"}, "hub_token", "the name of a secret"),
        ({"license": "My License"}, "license", "as the Hub spells them"),
        ({"hub_tokn": "x"}, "hub_tokn", "hub_token"),
        ({"type": "GIT"}, "type", "must be one of"),
    ],
)
def test_a_destination_is_checked_at_submit(
    job_document: dict[str, Any], changes: dict[str, Any], location: str, message: str
) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job({**job_document, "publish_to": [{**HUB, **changes}]})
    problems = {problem.location: str(problem) for problem in caught.value.problems}
    assert message in problems[f"publish_to.0.{location}"]
    assert PASTED not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://people.s3.amazonaws.com/acme",
        "s3://people",
        "s3://people/../zoo",
        "s3://user:password@people/acme",
        "s3://people/acme?X-Amz-Signature=1",
    ],
)
def test_a_bucket_has_a_prefix(job_document: dict[str, Any], url: str) -> None:
    with pytest.raises(InvalidJobError, match="the form is s3://bucket/prefix"):
        parse_job({**job_document, "publish_to": [{**BUCKET, "bucket_url": url}]})


def test_there_are_few_destinations(job_document: dict[str, Any]) -> None:
    with pytest.raises(InvalidJobError, match="publish_to"):
        parse_job({**job_document, "publish_to": [HUB] * 5})
