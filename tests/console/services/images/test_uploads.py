import asyncio
import base64
import hashlib
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from console.errors import InsufficientStorageError, TooLargeError
from console.services.images import incoming_bytes, upload_store
from console.services.images.upload_store import INCOMPLETE_TTL, UploadStore
from tasks.data.uploads import NoUploadError, StoredUploads
from tasks.settings.settings import Settings
from tasks.store import Store
from tests.console.conftest import Console, image, send, upload, zipped
from tests.waiting import wait_until

TUS = {"Tus-Resumable": "1.0.0"}
DATA = os.urandom(300_000)
SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*"


@pytest.fixture(autouse=True)
def nothing_is_left(console: Console) -> Iterator[None]:
    yield
    for who in ("acme", "zoo"):
        with console.client(who) as client:
            for it in client.get("/uploads").json():
                client.delete(f"/uploads/{it['id']}")


def begin(client: httpx2.Client, length: int, name: str = "images.zip") -> str:
    about = base64.b64encode(name.encode()).decode()
    headers = {**TUS, "Upload-Length": str(length), "Upload-Metadata": f"filename {about}"}
    answer = client.post("/uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"].startswith("/v1/uploads/")
    return str(answer.headers["location"].rpartition("/")[2])


def test_the_capabilities_of_tus_need_no_key(console: Console) -> None:
    answer = httpx2.options(f"{console.url}/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,checksum,termination"
    assert answer.headers["tus-max-size"] == "1000000"


def test_an_interrupted_upload_resumes_and_is_stored(console: Console, acme: httpx2.Client) -> None:
    upload_id = begin(acme, len(DATA))
    assert send(acme, upload_id, 0, DATA[:1000]).headers["upload-offset"] == "1000"

    def interrupted() -> Iterator[bytes]:
        yield DATA[1000:5000]
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        send(acme, upload_id, 1000, interrupted())
    offset, resumed = _resume(acme, upload_id, DATA)
    assert 1000 <= offset <= 5000
    assert resumed.headers["upload-offset"] == str(len(DATA))
    view = acme.get(f"/uploads/{upload_id}").json()
    assert view["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert view["name"] == "images.zip"
    assert console.store.get(f"uploads/acme/{upload_id}") == DATA
    folder = console.settings.home_dir / "console" / "uploads" / "acme" / upload_id
    assert not folder.exists()


def _resume(client: httpx2.Client, upload_id: str, data: bytes) -> tuple[int, httpx2.Response]:
    """Send the rest, once the server has noticed the interruption; return its offset too."""
    while True:
        head = client.head(f"/uploads/{upload_id}", headers=TUS)
        offset = int(head.headers["upload-offset"])
        response = send(client, upload_id, offset, data[offset:])
        if response.status_code == 204:
            return offset, response
        assert response.status_code == 409, response.text


def test_a_chunk_at_another_offset_is_refused(acme: httpx2.Client) -> None:
    upload_id = begin(acme, len(DATA))
    send(acme, upload_id, 0, DATA[:1000])
    assert send(acme, upload_id, 0, DATA[:1000]).status_code == 409
    assert send(acme, upload_id, 2000, DATA[2000:]).status_code == 409
    assert acme.head(f"/uploads/{upload_id}").headers["upload-offset"] == "1000"


def test_a_chunk_with_a_wrong_checksum_is_discarded(acme: httpx2.Client) -> None:
    upload_id = begin(acme, len(DATA))
    for algorithm in ("sha1", "sha256"):
        right = base64.b64encode(hashlib.new(algorithm, DATA[:9000]).digest()).decode()
        checksum = {"Upload-Checksum": f"{algorithm} {right}"}
        assert send(acme, upload_id, 0, b"x" + DATA[1:9000], **checksum).status_code == 460
        assert acme.head(f"/uploads/{upload_id}").headers["upload-offset"] == "0"
    assert send(acme, upload_id, 0, DATA[:9000], **checksum).status_code == 204
    odd = {"Upload-Checksum": "md5 AAAA"}
    assert send(acme, upload_id, 9000, DATA[9000:], **odd).status_code == 400


def test_large_uploads_are_refused_before_and_while_they_arrive(
    console: Console, acme: httpx2.Client
) -> None:
    answer = acme.post("/uploads", headers={**TUS, "Upload-Length": "1000001"})
    assert answer.status_code == 413
    upload_id = begin(acme, 1000)
    assert send(acme, upload_id, 0, DATA[:2000]).status_code == 413
    assert acme.head(f"/uploads/{upload_id}").headers["upload-offset"] == "0"
    assert send(acme, upload_id, 0, iter([DATA[:500], DATA[500:2000]])).status_code == 413
    assert int(acme.head(f"/uploads/{upload_id}").headers["upload-offset"]) <= 1000
    folder = console.settings.home_dir / "console" / "uploads" / "acme" / upload_id
    assert (folder / "data").stat().st_size <= 1000


def test_incomplete_uploads_of_a_tenant_are_limited(
    acme: httpx2.Client, zoo: httpx2.Client
) -> None:
    for _ in range(4):
        begin(acme, 1_000_000)
    answer = acme.post("/uploads", headers={**TUS, "Upload-Length": "1"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    begin(zoo, 1_000_000)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": "10"}, 412),
        ({"Tus-Resumable": "0.2.2", "Upload-Length": "10"}, 412),
        ({**TUS}, 400),
        ({**TUS, "Upload-Length": "-1"}, 400),
        ({**TUS, "Upload-Length": "1e3"}, 400),
        ({**TUS, "Upload-Length": "0"}, 422),
        ({**TUS, "Upload-Length": "9" * 30}, 400),
        ({**TUS, "Upload-Length": "10", "Upload-Metadata": "filename ###"}, 400),
        ({**TUS, "Upload-Length": "10", "Upload-Metadata": "filename /w=="}, 400),
    ],
)
def test_malformed_upload_headers_are_refused(
    acme: httpx2.Client, headers: dict[str, str], status: int
) -> None:
    assert acme.post("/uploads", headers=headers).status_code == status


def test_a_chunk_needs_its_headers(acme: httpx2.Client) -> None:
    upload_id = begin(acme, 10)
    url = f"/uploads/{upload_id}"
    right = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    for name, value, status in (
        ("Content-Type", "application/octet-stream", 415),
        ("Tus-Resumable", "2.0.0", 412),
        ("Upload-Offset", "x", 400),
    ):
        assert acme.patch(url, content=b"x", headers={**right, name: value}).status_code == status


def test_complete_and_incomplete_uploads_are_deleted(console: Console, acme: httpx2.Client) -> None:
    unfinished, whole = begin(acme, 10), upload(acme, DATA)
    for upload_id in (unfinished, whole):
        assert acme.delete(f"/uploads/{upload_id}", headers=TUS).status_code == 204
        assert acme.head(f"/uploads/{upload_id}").status_code == 404
    assert console.store.keys("uploads/acme") == []


def test_a_hostile_name_is_displayed_only(console: Console, acme: httpx2.Client) -> None:
    begin(acme, 10, name="../../x\x00\n<script>\u202egnp.exe")
    [view] = acme.get("/uploads").json()
    assert view["name"] == "../../x\\u0000\\n<script>\\u202egnp.exe"
    folder = console.settings.home_dir / "console" / "uploads" / "acme"
    assert [it.name for it in folder.iterdir()] == [view["id"]]


def test_thumbnails_show_valid_images_and_name_broken_ones(acme: httpx2.Client) -> None:
    files = {
        "a/cat.png": image("red", (900, 600)),
        "a/cat.txt": b"a cat",
        "broken.png": image()[:60],
        "../evil.png": image(),
        "gnp.\u202ecat.png": image(),
    }
    upload_id = upload(acme, zipped(files))
    images = acme.get(f"/uploads/{upload_id}/images").json()
    assert [it["name"] for it in images] == ["a/cat.png", "broken.png", "gnp.\\u202ecat.png"]
    assert images[0]["caption"] == "a cat"
    assert images[1]["error"]
    small = acme.get(f"/uploads/{upload_id}/images/0")
    assert small.headers["content-type"] == "image/jpeg"
    assert small.content.startswith(b"\xff\xd8")
    assert len(small.content) < 20_000
    assert acme.get(f"/uploads/{upload_id}/images/1").status_code == 404
    assert acme.get(f"/uploads/{upload_id}/images/-1").status_code == 422


def test_only_complete_archives_have_images(acme: httpx2.Client) -> None:
    answer = acme.get(f"/uploads/{upload(acme, b'no zip')}/images")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_dataset")
    assert acme.get(f"/uploads/{begin(acme, 10)}/images").status_code == 409


def test_expired_uploads_are_removed(tmp_path: Path) -> None:
    store = Store((tmp_path / "store").as_uri())
    kept_30_days = UploadStore(tmp_path / "coming", store, Settings())
    left, fresh = (kept_30_days.create("acme", name, 10) for name in "ab")
    (tmp_path / "whole").write_bytes(b"x")
    kept = kept_30_days.put("acme", "c", tmp_path / "whole")
    long_ago = time.time() - INCOMPLETE_TTL.total_seconds() - 60
    os.utime(tmp_path / "coming" / "acme" / left.id / "data", (long_ago, long_ago))
    assert [it.id for it in kept_30_days.remove_expired()] == [left.id]
    assert {it.id for it in kept_30_days.all("acme")} == {fresh.id, kept.id}
    UploadStore(
        tmp_path / "coming", store, Settings(job_ttl=timedelta(microseconds=1))
    ).remove_expired()
    assert [it.id for it in kept_30_days.all("acme")] == [fresh.id]


def test_tenants_with_a_common_prefix_share_nothing(tmp_path: Path) -> None:
    store = Store((tmp_path / "store").as_uri())
    (tmp_path / "whole").write_bytes(b"x")
    of_all = UploadStore(tmp_path / "coming", store, Settings())
    ids = {name: of_all.put(name, "x", tmp_path / "whole").id for name in ("acme", "acme2")}
    for name, upload_id in ids.items():
        assert [it.id for it in of_all.all(name)] == [upload_id]
    with pytest.raises(NoUploadError):
        StoredUploads(store, "acme2").path_of(f"upload:{ids['acme']}", tmp_path)


@pytest.mark.parametrize(
    "place", ["upload:", "upload:../x", "upload:" + "0" * 32, "upload:" + "A" * 32]
)
def test_malformed_upload_names_open_nothing(tmp_path: Path, place: str) -> None:
    with pytest.raises(NoUploadError):
        StoredUploads(Store((tmp_path / "store").as_uri()), "acme").path_of(place, tmp_path)


def test_an_idle_sender_does_not_block_the_upload(
    console: Console, acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = begin(acme, 100)
    file = console.settings.home_dir / "console" / "uploads" / "acme" / upload_id / "data"
    monkeypatch.setattr(incoming_bytes, "IDLE_TIMEOUT_S", 0.1)
    over = threading.Event()

    def falls_silent() -> Iterator[bytes]:
        yield b"x" * 40
        over.wait(30)

    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(send, acme, upload_id, 0, falls_silent())
        wait_until(
            lambda: file.stat().st_size == 40,
            timeout_s=30,
            description="the server keeps the bytes of the idle request",
        )
        offset, _ = _resume(acme, upload_id, b"x" * 40 + b"y" * 60)
        assert offset == 40
        over.set()
        assert stuck.result(30).status_code == 408


def test_an_upload_needs_disk_space(acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_store, "_MIN_FREE_BYTES", 10**18)
    answer = acme.post("/uploads", headers={**TUS, "Upload-Length": "1"})
    assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")
    assert acme.get("/uploads").json() == []


def test_all_uploads_of_a_tenant_have_a_quota(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.services.uploads._store, "_quota", 500_000)
    whole, unfinished = upload(acme, DATA), begin(acme, 100_000)
    refused = acme.post("/uploads", headers={**TUS, "Upload-Length": "100001"})
    assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
    assert "2 of 1,000 uploads with 400," in refused.json()["detail"]
    begin(acme, 90_000)
    begin(zoo, 400_000)
    for upload_id in (whole, unfinished):
        acme.delete(f"/uploads/{upload_id}", headers=TUS)
    begin(acme, 400_000)


def test_two_files_at_a_time_do_not_exceed_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = Store((tmp_path / "store").as_uri()), tmp_path / "file"
    uploads = UploadStore(tmp_path / "coming", store, Settings())
    file.write_bytes(b"x" * 1000)
    monkeypatch.setattr(uploads, "_quota", 2200)
    check, both = uploads._check_quota, threading.Barrier(2)

    def check_slowly(*arguments: Any) -> None:
        check(*arguments)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)

    monkeypatch.setattr(uploads, "_check_quota", check_slowly)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(uploads.put, "acme", "a", file) for _ in range(2)]
    errors = [answer.exception() for answer in answers]
    assert [type(error) for error in errors if error] == [InsufficientStorageError]


def test_the_number_of_a_tenants_uploads_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_store, "_MAX_UPLOADS", 2)
    store = Store((tmp_path / "store").as_uri())
    uploads, file = UploadStore(tmp_path / "coming", store, Settings()), tmp_path / "file"
    file.write_bytes(b"x")
    uploads.put("acme", "a", file)
    uploads.create("acme", "b", 10)
    with pytest.raises(InsufficientStorageError):
        uploads.put("acme", "c", file)
    with pytest.raises(InsufficientStorageError):
        uploads.create("acme", "c", 1)
    uploads.put("zoo", "a", file)


@given(st.text(max_size=150).filter(lambda name: re.fullmatch(SAFE_NAME, name) is None))
@example("../../../evil")
@example("/abs")
@example("..")
@example("a/b")
@example("a\x00")
@example("x" * 3000)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_operator_uploads_for_names_of_tenants_only(
    console: Console, operator: httpx2.Client, tenant: str
) -> None:
    # Nothing is the default tenant.
    assume(tenant.strip())
    value = base64.b64encode(tenant.encode("utf-8", "surrogatepass")).decode()
    headers = {**TUS, "Upload-Length": "10", "Upload-Metadata": f"tenant {value}"}
    assert operator.post("/uploads", headers=headers).status_code in (400, 422)
    folder = console.settings.home_dir / "console" / "uploads"
    assert [path for path in folder.glob("*") if path.name != ".locks"] == []


def test_a_body_larger_than_the_rest_is_refused_unread(console: Console) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    uploads = console.services.uploads._store
    view = uploads.create("acme", "x", 10)
    with pytest.raises(TooLargeError):
        asyncio.run(uploads.write("acme", view.id, 0, body(), count=11))


def test_another_tenants_upload_is_unknown_while_it_is_written(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    upload_id, over = begin(acme, 100), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"x" * 40
        over.wait(30)
        yield b"x" * 60

    with ThreadPoolExecutor() as pool:
        written = pool.submit(send, acme, upload_id, 0, slow())
        held = console.services.uploads._store._locks._held
        wait_until(lambda: upload_id in held, timeout_s=30, description="the upload is written")
        for client, status in ((zoo, 404), (operator, 409), (acme, 409)):
            assert send(client, upload_id, 0, b"x").status_code == status
            deleted = client.delete(f"/uploads/{upload_id}", headers=TUS)
            assert deleted.status_code == status
        over.set()
        assert written.result(30).status_code == 204


def test_an_operators_chunk_reads_no_other_upload(
    console: Console, acme: httpx2.Client, operator: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, read = upload(acme, DATA), list[str]()
    for _ in range(3):
        upload(acme, b"another")
    get = Store.get

    def note(store: Store, key: str) -> bytes:
        read.append(key)
        return get(store, key)

    monkeypatch.setattr(Store, "get", note)
    upload_id = begin(acme, 10)
    assert send(operator, upload_id, 0, b"12345").status_code == 204
    assert read == []
    assert operator.head(f"/uploads/{whole}").status_code == 200
    assert set(read) == {f"uploads/acme/{whole}.json"}


def test_a_list_reads_only_new_uploads(
    acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = upload(acme, DATA), upload(acme, DATA)
    assert {it["id"] for it in acme.get("/uploads").json()} == {first, second}
    acme.delete(f"/uploads/{first}", headers=TUS)
    third, read, get = upload(acme, DATA), list[str](), Store.get

    def note(store: Store, key: str) -> bytes:
        read.append(key)
        return get(store, key)

    monkeypatch.setattr(Store, "get", note)
    assert [it["id"] for it in acme.get("/uploads").json()] == [third, second]
    assert read == [f"uploads/acme/{third}.json"]


def test_a_malformed_id_opens_no_thumbnail(console: Console, acme: httpx2.Client) -> None:
    thumbnails = console.settings.home_dir / "console" / "thumbnails"
    thumbnails.mkdir(parents=True, exist_ok=True)
    (thumbnails / "7.jpg").write_bytes(b"another")
    address = f"{console.url}/v1/uploads/%2e%2e/images/7"
    assert acme.get(address).status_code == 404
