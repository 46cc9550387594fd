"""The contract's clients of one file, through connections that break."""

import hashlib
import importlib.util
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tasks.errors import JobError
from tasks.events import Note
from tests.console.conftest import Console, job
from tests.node_tools import NodeFolder

CONTRACT = Path(__file__).parents[3] / "deploy" / "contract"
DATA = os.urandom(600_000)
RESULT = os.urandom(900_000)
USE_TYPESCRIPT = """
import { createHash } from "node:crypto";
import { openAsBlob } from "node:fs";
import { ApiError, Client, JobFailedError } from "./client.ts";
import type { PresetJob } from "./training-worker.ts";

const [url, key, failed, published] = process.argv.slice(2) as [string, string, string, string];
const client = new Client(url, key);
const kinds: string[] = [];
for await (const event of client.follow(failed)) kinds.push(event.kind);
const code = await client.result(failed).then(
  () => "",
  (error: unknown) => (error instanceof JobFailedError ? error.job.error?.code : String(error)),
);
const [file] = await client.files(published);
const bytes = await client.download(published, file!);
const upload = await client.upload(await openAsBlob("images.zip"), "images.zip");
const refused = await client.submit({ preset: "none", training: {} } as unknown as PresetJob).then(
  () => "",
  (error: unknown) =>
    error instanceof ApiError && !error.retryable ? error.problems[0]?.location : String(error),
);
const digest = createHash("sha256").update(bytes).digest("hex");
const edited = await client.edit(failed, { notes: "twice" });
await client.delete(failed);
const isKnown = await client.knows(failed);
console.log(JSON.stringify({ kinds, code, digest, upload, refused, edited, isKnown }));
"""


class BreakingProxy:
    """Forwards connections to a console, and cuts each of the first ones after some bytes.

    Args:
        url: The console.
        cuts: Bytes of each direction that pass before each cut; later connections are whole.
    """

    def __init__(self, url: str, cuts: list[int]) -> None:
        self._target = ("127.0.0.1", urlsplit(url).port)
        self._cuts, self._lock = list(cuts), threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_whole(self) -> bool:
        return not self._cuts

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                with self._lock:
                    left = [self._cuts.pop(0) if self._cuts else 10**12]
                for source, target in ((client, server), (server, client)):
                    arguments = (source, target, left, (client, server))
                    threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(
        self,
        source: socket.socket,
        target: socket.socket,
        left: list[int],
        both: tuple[socket.socket, socket.socket],
    ) -> None:
        with suppress(OSError):
            while left[0] > 0 and (data := source.recv(min(left[0], 2**16))):
                target.sendall(data)
                left[0] -= len(data)
        for it in both:
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            it.close()


@pytest.fixture
def breaking(console: Console) -> Iterator[Callable[..., BreakingProxy]]:
    proxies: list[BreakingProxy] = []

    def start(*cuts: int) -> BreakingProxy:
        proxies.append(BreakingProxy(console.url, list(cuts)))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture(scope="module")
def client() -> ModuleType:
    """The module as it is copied."""
    spec = importlib.util.spec_from_file_location("contract_client", CONTRACT / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quick(client: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_PAUSE_S", 0.01)


def failed_job(console: Console, acme: httpx2.Client) -> str:
    job_id: str = acme.post("/jobs", json=job()).json()["id"]
    _, token, *_ = console.state.begin(job_id, "prepare", worker="w", queue="c", tag="t")
    for number in range(20):
        console.state.write(job_id, token, [Note(level="info", message=f"note {number} " * 20)])
    console.state.fail(job_id, token, JobError("broken"))
    return job_id


def published_job(console: Console, acme: httpx2.Client) -> str:
    job_id: str = acme.post("/jobs", json=job()).json()["id"]
    console.publish(job_id, {"cat.safetensors": RESULT})
    return job_id


@pytest.mark.usefixtures("quick")
def test_events_are_followed_across_interruptions(
    console: Console,
    acme: httpx2.Client,
    client: ModuleType,
    breaking: Callable[..., BreakingProxy],
) -> None:
    job_id = failed_job(console, acme)
    proxy = breaking(500, 0, 2500, 4000)
    events = list(client.Client(proxy.url, console.keys["acme"]).follow(job_id))
    assert proxy.is_whole
    notes = [event["message"].split()[1] for event in events if event["kind"] == "note"]
    assert notes == [str(number) for number in range(20)]
    assert events[-1]["kind"] == "ended"
    rest = client.Client(console.url, console.keys["acme"]).follow(job_id, events[4]["id"])
    assert [event["id"] for event in rest] == [event["id"] for event in events[5:]]
    with pytest.raises(client.JobFailedError, match="broken") as failed:
        client.Client(console.url, console.keys["acme"]).result(job_id)
    assert failed.value.code == "internal"


@pytest.mark.usefixtures("quick")
def test_downloads_resume_and_are_checked(
    console: Console,
    acme: httpx2.Client,
    client: ModuleType,
    breaking: Callable[..., BreakingProxy],
    tmp_path: Path,
) -> None:
    job_id = published_job(console, acme)
    proxy = breaking(10**6, 300_000, 0, 400_000)
    [path] = client.Client(proxy.url, console.keys["acme"]).download(job_id, tmp_path)
    assert proxy.is_whole
    assert path.read_bytes() == RESULT
    assert [it.name for it in tmp_path.iterdir()] == ["cat.safetensors"]
    # The part of an earlier process that is no part of this file.
    (tmp_path / "cat.safetensors.part").write_bytes(b"x" * 1000)
    direct = client.Client(console.url, console.keys["acme"])
    with pytest.raises(client.DigestError):
        direct.download(job_id, tmp_path)
    direct.download(job_id, tmp_path)


@pytest.mark.usefixtures("quick")
def test_uploads_resume(
    console: Console,
    acme: httpx2.Client,
    client: ModuleType,
    breaking: Callable[..., BreakingProxy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_CHUNK_BYTES", 100_000)
    (tmp_path / "images.zip").write_bytes(DATA)
    whole = 10**6
    proxy = breaking(whole, whole, 150_000, 0, 50_000, 50_000)
    connected = client.Client(proxy.url, console.keys["acme"], max_tries=50)
    upload = acme.get(f"/uploads/{connected.upload(tmp_path / 'images.zip')}").json()
    assert proxy.is_whole
    assert (upload["name"], upload["length"]) == ("images.zip", len(DATA))
    assert upload["sha256"] == hashlib.sha256(DATA).hexdigest()


def test_refusals_are_typed_and_not_repeated(console: Console, client: ModuleType) -> None:
    connected = client.Client(console.url, console.keys["acme"])
    with pytest.raises(client.ApiError) as refused:
        connected.submit(job(priority=10, training={"seed": "x"}))
    error = refused.value
    assert (error.status, error.code, error.retryable) == (422, "invalid_job", False)
    assert {problem.location for problem in error.problems} == {"priority", "training.seed"}
    assert all(problem.remedy for problem in error.problems)
    assert not connected.knows("none")
    with pytest.raises(ValueError, match="is not the http address"):
        client.Client("file:///etc", "key")


def test_jobs_are_submitted_once_and_changed(
    console: Console, acme: httpx2.Client, client: ModuleType
) -> None:
    connected = client.Client(console.url, console.keys["acme"])
    assert connected.preview(job(), check_dataset=False)["error"] is None
    first = connected.submit(job(), idempotency_key="order")
    assert connected.submit(job(), idempotency_key="order")["id"] == first["id"]
    others = {connected.submit(job())["id"] for _ in range(2)}
    assert {it["id"] for it in connected.jobs(limit="1")} == {first["id"], *others}
    assert connected.pause(first["id"])["status"] == "paused"
    assert connected.resume(first["id"])["status"] == "queued"
    with pytest.raises(client.ApiError, match="cancel it before you delete it"):
        connected.delete(first["id"])
    assert connected.cancel(first["id"], save=True)["status"] == "cancelled"
    edited = connected.edit(first["id"], title="Red", labels={"shelf": "3"})
    assert (edited["title"], edited["labels"]) == ("Red", {"shelf": "3"})
    for _ in range(2):
        connected.delete(first["id"])
    assert not connected.knows(first["id"])


class _Refusing(BaseHTTPRequestHandler):
    """A proxy in front of a console that restarts: it refuses twice, then redirects."""

    answers: list[tuple[int, dict[str, str]]]
    keys: list[str | None]

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        status, headers = self.answers.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": "5", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"<html")

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


def refusal(client: ModuleType) -> Any:
    """Return the error of a request to the refusing proxy."""
    with HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(client.ApiError) as refused:
            client.Client(f"http://127.0.0.1:{server.server_port}", "twk_x").job("a")
        server.shutdown()
        thread.join()
    return refused.value


@pytest.mark.usefixtures("quick")
def test_a_proxys_errors_are_repeated_and_its_redirects_refused(client: ModuleType) -> None:
    elsewhere = {"Location": "http://evil.example/"}
    _Refusing.keys = []
    _Refusing.answers = [(502, {}), (503, {"Retry-After": "0"}), (302, elsewhere)]
    refused = refusal(client)
    assert (refused.status, refused.code) == (302, "http")
    assert _Refusing.keys == ["Bearer twk_x"] * 3


def test_a_delay_until_next_month_is_the_callers(client: ModuleType) -> None:
    _Refusing.keys = []
    _Refusing.answers = [(429, {"Retry-After": "2600000"})]
    refused = refusal(client)
    assert (refused.retryable, refused.retry_after_s) == (True, 2_600_000)
    assert len(_Refusing.keys) == 1


@pytest.mark.timeout(240)
def test_the_typescript_client_resumes_too(
    console: Console,
    acme: httpx2.Client,
    node: NodeFolder,
    breaking: Callable[..., BreakingProxy],
) -> None:
    failed, published = failed_job(console, acme), published_job(console, acme)
    for name in ("client.ts", "training-worker.ts"):
        (node.path / name).write_text((CONTRACT / name).read_text("utf-8"))
    (node.path / "use.ts").write_text(USE_TYPESCRIPT)
    (node.path / "images.zip").write_bytes(DATA)
    node.compile("use.ts")
    proxy = breaking(600, 3000, 300_000, 100_000, 100_000)
    printed = json.loads(
        node.run("node", "use.js", proxy.url, console.keys["acme"], failed, published)
    )
    assert proxy.is_whole
    assert printed["kinds"].count("note") == 20
    assert printed["kinds"][-1] == "ended"
    assert printed["code"] == "internal"
    assert printed["digest"] == hashlib.sha256(RESULT).hexdigest()
    assert printed["refused"] == "preset"
    assert printed["edited"]["notes"] == "twice"
    assert printed["isKnown"] is False
    assert acme.get(f"/uploads/{printed['upload']}").json()["sha256"]
