"""Errors of requests that are about no job: each names its place and what to do."""

from typing import Any

import httpx2
import pytest

from tests.console.conftest import job

TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "0"}


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "location"),
    [
        ("POST", "/uploads", {"headers": TUS}, 422, "Upload-Length"),
        ("POST", "/uploads:multipart", {"files": {"file": ("a.zip", b"")}}, 422, "file"),
        ("POST", "/uploads:multipart", {"files": {"other": ("a.zip", b"a")}}, 422, "file"),
        (
            "POST",
            "/uploads:multipart?tenant=../a",
            {"files": {"file": ("a.zip", b"a")}},
            422,
            "tenant",
        ),
        ("GET", "/webhook-secrets", {}, 422, "tenant"),
        ("GET", "/webhook-secrets?tenant=../a", {}, 422, "tenant"),
        ("GET", "/jobs?label=%3Da", {}, 400, "label"),
    ],
)
def test_a_wrong_request_is_no_wrong_job(
    operator: httpx2.Client,
    method: str,
    path: str,
    options: dict[str, Any],
    status: int,
    location: str,
) -> None:
    refused = operator.request(method, path, **options)
    document = refused.json()
    code = {400: "bad_request", 422: "invalid_request"}[status]
    assert (refused.status_code, document["code"]) == (status, code)
    [problem] = document["errors"]
    assert problem["location"] == location
    assert problem["message"] == document["detail"]
    assert "job" not in document["detail"]
    assert problem["remedy"] not in ("", "correct it")


def test_a_priority_or_the_front_is_asked_for(operator: httpx2.Client) -> None:
    job_id = operator.post("/jobs", json=job()).json()["id"]
    both = operator.post(f"/jobs/{job_id}:prioritize", json={"priority": 1, "front": True})
    [problem] = both.json()["errors"]
    assert problem["message"] == "give either a priority or front: true"
