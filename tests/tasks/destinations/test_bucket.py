"""Copies to a tenant's bucket, by obstore and a server that speaks S3."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.destinations.bucket import BucketCopier
from tasks.destinations.results import CopyError, Results
from tasks.errors import SupersededError
from tasks.jobs.destinations import BucketDestination
from tests.tasks.destinations.made import FILES, job_of, results_of
from tests.tasks.destinations.s3_server import S3Server, running_s3_server

URL = "s3://people/acme/loras"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    # What the operator's own store needs must not reach the tenant's server.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "operator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-of-the-operator")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with running_s3_server() as server:
        yield server


@pytest.fixture
def results(tmp_path: Path, job_document: dict[str, Any]) -> Results:
    return results_of(job_of(job_document), tmp_path)


def secret_of(s3: S3Server, **fields: Any) -> str:
    secret = {
        "roots": ["s3://people/acme"],
        "access_key_id": "tenant",
        "secret_access_key": "tenants-secret",
        "endpoint": f"http://{s3.host}",
    }
    return json.dumps({**secret, **fields})


def copier(s3: S3Server, secret: str | None = None, url: str = URL) -> BucketCopier:
    destination = BucketDestination(bucket_url=url, bucket_credentials="bucket")
    return BucketCopier(destination, secret or secret_of(s3), frozenset({s3.host}))


def test_all_files_are_copied_and_the_manifest_last(s3: S3Server, results: Results) -> None:
    copier(s3).check()
    copy = copier(s3).copy(results, lambda: None)
    assert s3.written == [f"/people/acme/loras/j1/{name}" for name in (*FILES, "manifest.json")]
    assert s3.objects["/people/acme/loras/j1/lamp.json"][0] == FILES["lamp.json"]
    assert copy.url == f"{URL}/j1"
    assert s3.keys == {"tenant"}


def test_a_repeated_copy_writes_nothing(s3: S3Server, results: Results) -> None:
    copier(s3).copy(results, lambda: None)
    s3.written.clear()
    copier(s3).copy(results, lambda: None)
    assert s3.written == []


def test_another_object_is_not_replaced(s3: S3Server, results: Results) -> None:
    s3.objects["/people/acme/loras/j1/lamp.json"] = (b"mine", "")
    with pytest.raises(CopyError, match="is there already, with other content") as caught:
        copier(s3).copy(results, lambda: None)
    assert not caught.value.retryable
    assert "/people/acme/loras/j1/manifest.json" not in s3.objects


def test_a_bucket_that_does_not_exist_is_reported(s3: S3Server, results: Results) -> None:
    s3.status = 404
    with pytest.raises(CopyError, match="s3://people/acme/loras does not exist") as caught:
        copier(s3).copy(results, lambda: None)
    assert caught.value.option == "bucket_url"


def test_a_servers_page_is_quoted_in_part(s3: S3Server) -> None:
    s3.status, s3.page = 400, b"\x1b[31m" + b"x" * 100_000
    with pytest.raises(CopyError, match="cannot be written") as caught:
        copier(s3)._put_manifest("manifest.json", b"{}")
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_an_endless_manifest_is_not_read(s3: S3Server, results: Results) -> None:
    s3.objects["/people/acme/loras/j1/manifest.json"] = (b"{}", "")
    s3.is_endless = True
    with pytest.raises(CopyError, match="is there already, with other content"):
        copier(s3).copy(results, lambda: None)


def test_a_superseded_start_writes_nothing(s3: S3Server, results: Results) -> None:
    def fence() -> None:
        raise SupersededError("j1", 1)

    with pytest.raises(SupersededError):
        copier(s3).copy(results, fence)
    assert s3.written == []


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ({"roots": ["s3://people/others"]}, "is below no root of the secret bucket"),
        ({"roots": ["s3://people/acme-other"]}, "is below no root"),
        ({"aws_profile": "operator"}, "aws_profile: Extra inputs are not permitted"),
        ({"secret_access_key": None}, "secret_access_key: Input should be a valid string"),
        ({"endpoint": "http://127.0.0.1:2"}, "is no https:// address"),
        ({"endpoint": "https://127.0.0.1:2"}, "which is not public"),
        ({"endpoint": "https://169.254.169.254"}, "which is not public"),
        ({"endpoint": "https://user@example.org"}, "is no https:// address"),
    ],
)
def test_credentials_are_checked(s3: S3Server, secret: dict[str, Any], message: str) -> None:
    with pytest.raises(CopyError, match=message) as caught:
        copier(s3, secret_of(s3, **secret)).check()
    assert "tenants-secret" not in str(caught.value)


def test_a_secret_that_is_no_json_is_not_quoted(s3: S3Server) -> None:
    with pytest.raises(CopyError, match="is not a JSON object") as caught:
        copier(s3, "AKIATENANT:tenants-secret").check()
    assert "tenants-secret" not in str(caught.value)


@pytest.mark.parametrize(("status", "retryable"), [(403, False), (503, True)])
def test_refusals_and_failures_differ(s3: S3Server, status: int, retryable: bool) -> None:
    s3.status = status
    with pytest.raises(CopyError) as caught:
        copier(s3).check()
    assert caught.value.retryable == retryable
