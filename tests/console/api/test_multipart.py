"""Uploads as a form: stored whole, or not at all."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.api.multipart import FormFile
from console.errors import ConsoleError
from tests.console.conftest import Console
from tests.waiting import wait_until

DATA = os.urandom(300_000)
PATH = "/uploads:multipart"
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}
HEAD = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
TAIL = b"\r\n--xyz--\r\n"


def left(console: Console) -> list[Path]:
    folder = console.settings.home_dir / "console" / "uploads"
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".locks"]


def test_curl_uploads_a_file(console: Console, acme: httpx2.Client, tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(DATA)
    key = f"Authorization: Bearer {console.keys['acme']}"
    command = ["curl", "-sS", "-H", key, "-F", "file=@images.zip", f"{console.url}/v1{PATH}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    [upload] = acme.get("/uploads").json()
    assert upload["id"] in done.stdout
    assert (upload["name"], upload["length"], upload["tenant"]) == ("images.zip", 300_000, "acme")
    assert upload["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert left(console) == []


def test_a_form_of_unknown_size_is_stored(acme: httpx2.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield HEAD
        for start in range(0, len(DATA), 1000):
            yield DATA[start : start + 1000]
        yield TAIL

    answer = acme.post(PATH, content=pieces(), headers=FORM)
    assert answer.status_code == 201, answer.text
    assert answer.json()["sha256"] == hashlib.sha256(DATA).hexdigest()
    path = answer.headers["location"].removeprefix("/v1")
    assert acme.get(path).json() == answer.json()


def test_only_an_operator_names_the_tenant(acme: httpx2.Client, operator: httpx2.Client) -> None:
    form = {"file": ("a.zip", b"x")}
    assert acme.post(f"{PATH}?tenant=zoo", files=form).status_code == 403
    assert operator.post(f"{PATH}?tenant=../x", files=form).status_code == 422
    assert operator.post(f"{PATH}?tenant=zoo", files=form).json()["tenant"] == "zoo"
    assert acme.get("/uploads").json() == []


@pytest.mark.parametrize(
    ("body", "headers", "status", "location"),
    [
        (HEAD + DATA, FORM, 400, ""),
        (HEAD + TAIL, FORM, 422, "file"),
        (b"no form", FORM, 400, ""),
        (HEAD + b"a" + TAIL, {"Content-Type": "application/zip"}, 415, "Content-Type"),
        (HEAD + b"a" + TAIL, {"Content-Type": "multipart/form-data"}, 415, "Content-Type"),
        (HEAD.replace(b'"file"', b'"other"') + b"a" + TAIL, FORM, 422, "file"),
        (HEAD + b"a\r\n" + HEAD + b"b" + TAIL, FORM, 422, "file"),
        (HEAD + b"a" * 1_000_001 + TAIL, FORM, 413, ""),
        (b"--xyz\r\n" + b"X: y\r\n" * 50 + HEAD, FORM, 400, ""),
    ],
)
def test_a_refused_form_leaves_nothing(
    console: Console,
    acme: httpx2.Client,
    body: bytes,
    headers: dict[str, str],
    status: int,
    location: str,
) -> None:
    answer = acme.post(PATH, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["errors"][0]["location"] == location
    assert left(console) == []
    assert acme.get("/uploads").json() == []


def test_an_interrupted_form_leaves_nothing(console: Console, acme: httpx2.Client) -> None:
    arrived = Event()

    def interrupted() -> Iterator[bytes]:
        yield HEAD + DATA
        arrived.wait(30)
        raise ConnectionError("the network is gone")

    with ThreadPoolExecutor() as pool:
        sender = pool.submit(acme.post, PATH, content=interrupted(), headers=FORM)
        wait_until(lambda: bool(left(console)), timeout_s=30, description="bytes have arrived")
        arrived.set()
        with pytest.raises(ConnectionError):
            sender.result(30)
    wait_until(lambda: not left(console), timeout_s=30, description="they are removed")
    assert acme.get("/uploads").json() == []


def test_a_form_counts_towards_the_quota(
    console: Console, acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.services.uploads._store, "_quota", 400_000)
    assert acme.post(PATH, files={"file": ("a", DATA)}).status_code == 201
    answer = acme.post(PATH, files={"file": ("b", DATA)})
    assert (answer.status_code, answer.json()["code"]) == (507, "insufficient_storage")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_file_is_read_however_it_arrives(data: bytes, size: int) -> None:
    body = HEAD + data + TAIL

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async def read() -> tuple[str, bytes]:
        form = FormFile(FORM["Content-Type"], pieces())
        return await form.start(), b"".join([chunk async for chunk in form.data()])

    if b"--xyz" not in data:
        assert asyncio.run(read()) == ("a.zip", data)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80), st.binary(max_size=300))
def test_a_malformed_form_is_an_error_of_the_sender(content_type: str, body: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield HEAD[:60] + body

    async def read() -> None:
        kind = FORM["Content-Type"] + content_type
        await FormFile(kind.encode("latin-1", "replace").decode("latin-1"), pieces()).start()

    with pytest.raises(ConsoleError):
        asyncio.run(read())
