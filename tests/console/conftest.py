import asyncio
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from PIL import Image
from pydantic import SecretStr
from redis import Redis

from console.__main__ import server_config
from console.app import make_app
from console.pages.site import add_pages
from console.services.rate_limiter import WrongKeys
from console.services.services import Services, open_services
from tasks.events import Artifact, ValidationImages
from tasks.settings.settings import Settings
from tasks.state.artifacts import JobArtifacts
from tasks.state.job_store import JobStore, StartOutcome
from tasks.state.record import StageRecord
from tasks.store import Store
from tests.waiting import wait_until
from worker.local.embedded_broker import EmbeddedBroker

TENANTS = {"operator": None, "acme": "acme", "zoo": "zoo"}


class Console:
    """The served console, with the state, broker and store behind it."""

    def __init__(self, served: "Served", state: JobStore, client: Redis) -> None:
        self.settings, self.url, self.keys = served.settings, served.url, served.keys
        self.state, self.redis, self.services = state, client, served.services
        # Of earlier tests.
        served.services.jobs._history = None
        vars(served.services.wrong_keys).update(vars(WrongKeys(client)))
        self.store = Store(served.settings.resolved_store_url)

    def client(self, who: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        return httpx2.Client(base_url=f"{self.url}/v1", headers=headers, timeout=30)

    def stage(self, job_id: str, stage: str, artifacts: JobArtifacts, **result: Any) -> None:
        """Start and finish a stage of a job, as a worker does."""
        outcome, token, *_ = self.state.begin(job_id, stage, worker="w", queue="q", tag="t")
        assert outcome == StartOutcome.BEGUN
        done = StageRecord(queue="q", worker="w", attempt=token.attempt, started_at=0, seconds=1)
        self.state.finish_stage(job_id, token, stage, done, artifacts, result or None)

    def publish(self, job_id: str, files: dict[str, bytes]) -> None:
        """Publish these files of a job, and one validation image."""
        listed = [self.keep(f"outputs/{job_id}/{name}", name, data) for name, data in files.items()]
        image = self.keep(f"jobs/{job_id}/validation/1.png", "validation-000004-1-1.png", PNG)
        validation = ValidationImages(step=4, images=(image,))
        for stage in ("prepare", "cache", "train"):
            self.stage(job_id, stage, JobArtifacts(validations=(validation,)))
        manifest = f"outputs/{job_id}/manifest.json"
        document = {"files": [it.model_dump() for it in listed]}
        self.store.put(manifest, json.dumps(document).encode())
        keys = [it.key for it in listed]
        self.stage(
            job_id,
            "publish",
            JobArtifacts(manifest=manifest),
            published="/secret/place",
            manifest=f"/secret/{manifest}",
            sha256=listed[0].sha256,
            files=keys,
        )

    def keep(self, key: str, name: str, data: bytes) -> Artifact:
        path = self.settings.home_dir / "kept"
        path.write_bytes(data)
        return self.store.put_artifact(key, path).model_copy(update={"name": name})


def make_other_app(served: "Served", services: Services) -> FastAPI:
    """Return an application beside the shared one, which keeps NiceGUI's pages."""
    nicegui_app.middleware_stack = None
    app = make_app(services)
    add_pages(FastAPI(), served.services)
    return app


@dataclass(frozen=True)
class Served:
    """The console that all tests share."""

    settings: Settings
    services: Services
    url: str
    keys: dict[str, str]


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """Install none: the server runs in a thread."""


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for the console's tests alone: pages save drafts after their tests have ended."""
    with EmbeddedBroker(tmp_path_factory.mktemp("console-broker")) as broker:
        yield broker.url


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("console")
    settings = Settings(
        home=home,
        broker_url=SecretStr(broker_url),
        data_roots="/",
        data_hosts="intern.example",
        api_rate_limit=100_000,
        upload_max_bytes=1_000_000,
        tenant_roots=f"{home}/open,s3://open/people",
        gpu_prices="40gb=1.8",
        console_port=0,
    )
    services = open_services(settings, broker_url)
    keys = {name: services.api_keys.create(name, tenant) for name, tenant in TENANTS.items()}
    server = _Server(server_config(services))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_until(lambda: server.started, timeout_s=30, description="the console is served")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(settings, services, f"http://127.0.0.1:{port}", keys)
    server.should_exit = True
    thread.join(30)  # beside other tests
    assert not thread.is_alive()


@pytest.fixture
def console(served: Served, redis_client: Redis, state: JobStore) -> Console:
    # Each test starts with an empty broker and without uploads.
    home = served.settings.home_dir
    # The console keeps its file of locks open.
    for folder in (home / "store" / "uploads", *(home / "console" / "uploads").glob("[!.]*")):
        shutil.rmtree(folder, ignore_errors=True)
    return Console(served, state, redis_client)


@pytest.fixture
def operator(console: Console) -> Iterator[httpx2.Client]:
    with console.client("operator") as client:
        yield client


@pytest.fixture
def acme(console: Console) -> Iterator[httpx2.Client]:
    with console.client("acme") as client:
        yield client


@pytest.fixture
def zoo(console: Console) -> Iterator[httpx2.Client]:
    with console.client("zoo") as client:
        yield client


def job(**more: Any) -> dict[str, Any]:
    """Return a job that any key may submit."""
    dataset = {"type": "ARCHIVE", "archive": "https://example.org/images.zip"}
    training = {"data_loader": {"dataset": dataset}, **more.pop("training", {})}
    return {"preset": "flux_lora_1x40gb", "training": training, **more}


def image(color: str = "red", size: tuple[int, int] = (96, 96), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


PNG = image()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def upload(client: httpx2.Client, data: bytes) -> str:
    """Upload by tus in one chunk and return the id."""
    created = client.post(
        "/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": str(len(data))}
    )
    assert created.status_code == 201, created.text
    upload_id = created.headers["location"].rpartition("/")[2]
    sent = send(client, upload_id, 0, data)
    assert sent.status_code == 204, sent.text
    return str(upload_id)


def send(
    client: httpx2.Client, upload_id: str, offset: int, data: Any, **headers: str
) -> httpx2.Response:
    return client.patch(
        f"/uploads/{upload_id}",
        content=data,
        headers={
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            **headers,
        },
    )
