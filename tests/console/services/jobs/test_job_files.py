import base64
import hashlib

import httpx2
import pytest

from tests.console.conftest import PNG, Console, job

LORA = bytes(range(256)) * 5000  # more than one piece of those that are read at a time


@pytest.fixture
def published(console: Console, acme: httpx2.Client) -> str:
    training = {"validation_prompts": ["a cat"], "validate_every_n_steps": 4}
    job_id: str = acme.post("/jobs", json=job(name="cat", training=training)).json()["id"]
    console.publish(job_id, {"cat.safetensors": LORA, "validation/a b.png": PNG, "empty.txt": b""})
    return job_id


def test_published_files_are_listed_with_the_manifest(acme: httpx2.Client, published: str) -> None:
    listed = acme.get(f"/jobs/{published}/files").json()
    assert listed["files"][0]["name"] == "cat.safetensors"
    assert listed["files"][0]["sha256"] == hashlib.sha256(LORA).hexdigest()
    assert listed["manifest"]["files"][0]["size"] == len(LORA)


def test_a_job_without_published_files_lists_none(acme: httpx2.Client) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    assert acme.get(f"/jobs/{job_id}/files").json() == {"files": [], "manifest": None}
    assert acme.get(f"/jobs/{job_id}/files/lora.safetensors").status_code == 404


def test_a_file_is_downloaded_with_its_digest(acme: httpx2.Client, published: str) -> None:
    url = f"/jobs/{published}/files/cat.safetensors"
    answer = acme.get(url)
    assert answer.content == LORA
    digest = hashlib.sha256(LORA)
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    sent = base64.b64encode(digest.digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{sent}:"
    assert answer.headers["content-disposition"].startswith("attachment;")
    head = acme.head(url)
    assert head.headers["content-length"] == str(len(LORA))
    assert head.content == b""


@pytest.mark.parametrize(
    ("range_header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1048570-1048590", 1048570, 1048591),
        ("bytes=1279990-", 1279990, 1280000),
        ("bytes=-5", 1279995, 1280000),
        ("bytes=5-99999999", 5, 1280000),
        ("bytes=-99999999", 0, 1280000),
    ],
)
def test_a_range_is_downloaded(
    acme: httpx2.Client, published: str, range_header: str, start: int, end: int
) -> None:
    answer = acme.get(f"/jobs/{published}/files/cat.safetensors", headers={"Range": range_header})
    assert answer.status_code == 206
    assert answer.content == LORA[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(LORA)}"


@pytest.mark.parametrize("range_header", ["bytes=1280000-", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(
    acme: httpx2.Client, published: str, range_header: str
) -> None:
    answer = acme.get(f"/jobs/{published}/files/cat.safetensors", headers={"Range": range_header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(LORA)}"


@pytest.mark.parametrize("range_header", ["bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=a-b"])
def test_unsupported_ranges_get_the_whole_file(
    acme: httpx2.Client, published: str, range_header: str
) -> None:
    answer = acme.get(f"/jobs/{published}/files/cat.safetensors", headers={"Range": range_header})
    assert (answer.status_code, len(answer.content)) == (200, len(LORA))


def test_a_range_of_another_version_gets_the_whole_file(
    acme: httpx2.Client, published: str
) -> None:
    url = f"/jobs/{published}/files/cat.safetensors"
    etag = acme.head(url).headers["etag"]
    same = acme.get(url, headers={"Range": "bytes=0-1", "If-Range": etag})
    other = acme.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)
    assert acme.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert acme.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_empty_files_and_files_in_folders_are_downloaded(
    acme: httpx2.Client, published: str
) -> None:
    assert acme.get(f"/jobs/{published}/files/empty.txt").content == b""
    ranged = acme.get(f"/jobs/{published}/files/empty.txt", headers={"Range": "bytes=0-"})
    assert ranged.status_code == 416
    inner = acme.get(f"/jobs/{published}/files/validation/a%20b.png")
    assert inner.content == PNG
    assert inner.headers["content-type"] == "image/png"
    assert "a%20b.png" in inner.headers["content-disposition"]


def test_validation_images_are_listed_and_downloaded(acme: httpx2.Client, published: str) -> None:
    [sample] = acme.get(f"/jobs/{published}/samples").json()
    assert sample == {
        "step": 4,
        "name": "validation-000004-1-1.png",
        "prompt": "a cat",
        "size": len(PNG),
    }
    answer = acme.get(f"/jobs/{published}/samples/{sample['name']}")
    assert answer.content == PNG
    assert answer.headers["content-disposition"].startswith("inline;")
    assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "../manifest.json",
        "..%2fmanifest.json",
        "%2e%2e/%2e%2e/secret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:%2f%2f%2fetc%2fpasswd",
        "cat.safetensors%00.png",
        "",
        "%2e",
        "%2e%2e",
    ],
)
def test_only_names_of_published_files_are_opened(
    console: Console, acme: httpx2.Client, published: str, name: str
) -> None:
    console.store.put("secret", b"secret")
    for kind in ("files", "samples"):
        answer = acme.get(f"/jobs/{published}/{kind}/{name}", follow_redirects=False)
        assert answer.status_code in (307, 404), answer.text
        assert b"secret" not in answer.content


def test_tenants_do_not_see_the_stores_location(
    acme: httpx2.Client, operator: httpx2.Client, published: str
) -> None:
    response = acme.get(f"/jobs/{published}")
    assert "/secret" not in response.text
    assert response.json()["result"]["files"] == [
        "cat.safetensors",
        "validation/a b.png",
        "empty.txt",
    ]
    assert operator.get(f"/jobs/{published}").json()["result"]["published"] == "/secret/place"
