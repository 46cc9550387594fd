import json
import os
import socket
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest
from celery import Celery
from playwright.sync_api import Page, sync_playwright
from redis import Redis

from routing.queues import GPU_QUEUES
from tasks.contract import SUBMIT, SUBMIT_QUEUE
from tasks.state.keys import DEAD_LETTERS, tenant_queue_key
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet, free_port
from tests.waiting import wait_until
from worker.local.embedded_broker import find_server
from worker.miniature.dataset import draw_dataset
from worker.supervision.process import spawn, stop

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROKER_PASSWORD = "broker-pa55"
SIGNATURE = "5ecret-signature"
ALL_STAGES = {"training.prepare", "training.cache", "training.train", "training.publish"}


@pytest.fixture(scope="module")
def broker_with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("broker"), free_port()
    options = {"port": port, "bind": "127.0.0.1", "requirepass": BROKER_PASSWORD, "save": ""}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with (folder / "log").open("wb") as log:
        server = spawn([str(find_server()), *words, "--dir", str(folder)], stdout=log)
    yield f"redis://:{BROKER_PASSWORD}@127.0.0.1:{port}/0"
    stop(server, 10)


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, broker_with_password: str
) -> Iterator["Watched"]:
    """A fleet with Flower under a prefix, which has finished one job and refused another one."""
    folder = tmp_path_factory.mktemp("watched")
    settings = {
        "TRAINING_BROKER_URL": broker_with_password,
        "TRAINING_DATA_ROOTS": str(folder),
        "TRAINING_FLOWER_PREFIX": "ops/flower",
        "TRAINING_CONSOLE_URL": "http://127.0.0.1:1/console/{{2}}",
    }
    draw_dataset(folder / "images")
    with Fleet(folder / "home", "40gb,24gb", **settings) as fleet, Watched(fleet) as watched_fleet:
        wait_until(
            lambda: watched_fleet.ask("/api/workers?refresh=1")[1].count("active_queues") == 3,
            timeout_s=PATIENCE_S,
            description="Flower knows the workers",
            detail=fleet.log,
        )
        backend = Celery(broker=broker_with_password, backend=broker_with_password)
        signed = short_job(tiny_model, folder / "images")
        signed["training"]["data_loader"]["dataset"] = {
            "type": "ARCHIVE",
            "archive": f"https://127.0.0.1:1/images.zip?signature={SIGNATURE}",
        }
        refused = backend.send_task(SUBMIT, ({**signed, "id": "signed"},), queue=SUBMIT_QUEUE)
        assert isinstance(refused.get(timeout=PATIENCE_S, propagate=False), Exception)
        document = short_job(tiny_model, folder / "images")
        watched_fleet.job_id = fleet.submit(document, "--watch").documents[0]["job_id"]
        waiting = {**document, "preset": "flux_lora_1x80gb", "tenant": "acme"}
        waiting["training"] = {
            "model": str(tiny_model),
            "max_train_steps": 12,
            "data_loader": {"dataset": document["training"]["data_loader"]["dataset"]},
        }
        for _ in range(2):
            fleet.submit(waiting)
        with Redis.from_url(broker_with_password, decode_responses=True) as redis:
            redis.zadd(DEAD_LETTERS, {"lost-job": 1e9})
            wait_until(
                lambda: redis.zcard(tenant_queue_key("gpu.80gb", "acme")) == 2,
                timeout_s=PATIENCE_S,
                description="two jobs wait for a GPU of 80 GB",
                detail=fleet.log,
            )
        # Task events are sent in batches, a moment later.
        wait_until(
            lambda: watched_fleet.ask("/api/tasks")[1].count('"state": "SUCCESS"') == 6,
            timeout_s=PATIENCE_S,
            description="Flower has received the ends of six stages",
            detail=fleet.log,
        )
        # Flower counts from its start, and a test restarts it.
        watched_fleet.metrics = watched_fleet.ask("/metrics")[1]
        yield watched_fleet


class Watched:
    """A Flower process, and requests to it."""

    job_id: str
    metrics: str

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.port = fleet, free_port()
        self.url = f"http://127.0.0.1:{self.port}/ops/flower"

    def __enter__(self) -> Self:
        with (self.fleet.home / "flower.log").open("ab") as log:
            self.process = spawn(
                [sys.executable, "-P", "-m", "worker", "flower"],
                env={**self.fleet.env, "TRAINING_FLOWER_PORT": str(self.port)},
                stdout=log,
                stderr=log,
            )
        password = self.fleet.home / "flower-password"
        wait_until(password.exists, timeout_s=PATIENCE_S, description="Flower has a password")
        self.password = password.read_text("utf-8").strip()
        wait_until(
            lambda: self.ask("/healthcheck")[0] == 200,
            timeout_s=PATIENCE_S,
            description="Flower answers",
            detail=(self.fleet.home / "flower.log").read_text,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stop(self.process, 10)

    def restart(self) -> None:
        stop(self.process, 10)
        self.__enter__()

    def ask(
        self, path: str, password: str | None = None, post: bytes | None = None
    ) -> tuple[int, str]:
        token = b64encode(f"operator:{password or self.password}".encode()).decode()
        # Flower accepts changes from its own pages.
        headers = {"Authorization": f"Basic {token}", "Origin": f"http://127.0.0.1:{self.port}"}
        request = urllib.request.Request(self.url + path, post, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except urllib.error.URLError:
            return 0, ""


@pytest.fixture
def page(watched: Watched) -> Iterator[Page]:
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip("no browser is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        credentials = {"username": "operator", "password": watched.password}
        context = browser.new_context(http_credentials=credentials)  # type: ignore[arg-type]
        context.set_default_timeout(20_000)
        yield context.new_page()
        browser.close()


def test_flower_needs_its_password_and_lists_the_queues(
    watched: Watched,
) -> None:
    assert watched.ask("/api/workers", "wrong")[0] == 401
    workers = json.loads(watched.ask("/api/workers?refresh=1")[1])
    queues = {
        name.partition("@")[0]: [queue["name"] for queue in about["active_queues"]]
        for name, about in workers.items()
    }
    assert queues["cpu"] == ["cpu", "submit"]
    assert "gpu.40gb" in queues["gpu-40gb-0"]
    assert "gpu.40gb" not in queues["gpu-24gb-1"]
    tasks = json.loads(watched.ask("/api/tasks")[1]).values()
    done = [task for task in tasks if task["state"] == "SUCCESS"]
    shown = {task["name"]: task["args"] for task in done if watched.job_id in task["args"]}
    assert shown.keys() == ALL_STAGES
    job = f"job={watched.job_id} name=shapes tenant=default"
    assert shown["training.prepare"] == f"{job} queue=cpu"
    assert shown["training.train"] == f"{job} queue=gpu.40gb gpu=emulated 40gb"
    lengths = json.loads(watched.ask("/api/queues/length")[1])["active_queues"]
    assert {"name": "gpu.80gb", "messages": 2} in lengths
    log = (watched.fleet.home / "flower.log").read_text("utf-8")
    assert f"flower: {watched.url}" in log
    assert "celery.accumulate" not in log  # its banner would list Celery's own tasks


def test_flower_changes_nothing(watched: Watched) -> None:
    worker = f"gpu-24gb-1@{socket.gethostname()}"
    for path in (
        f"/api/worker/shutdown/{worker}",
        f"/api/worker/pool/grow/{worker}?n=1",
        f"/api/worker/queue/add-consumer/{worker}?queue=gpu.40gb",
        "/api/task/revoke/any?terminate=true",
        "/api/task/send-task/training.prepare",
    ):
        assert watched.ask(path, post=b"{}")[0] == 403, path


def test_flower_metrics_are_served_on_loopback_only(
    watched: Watched,
) -> None:
    runtimes = 'flower_task_runtime_seconds_count{task="training.train",worker="gpu-40gb-0@'
    assert runtimes in watched.metrics
    listening = [
        connection.laddr
        for connection in psutil.Process(watched.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}


def check_queues(page: Page) -> None:
    """Check what Flower's page of queues shows."""
    queues = [row.split("\t") for row in page.locator("#queue-table tbody tr").all_inner_texts()]
    assert [row[0] for row in queues] == ["cpu", *GPU_QUEUES, "submit"]
    by_name = {row[0]: row[1:] for row in queues}
    assert by_name["gpu.80gb"] == ["2", "acme 2", by_name["gpu.80gb"][2], "none"]
    assert by_name["gpu.40gb"] == ["0", "-", "-", "1"]
    assert "emulated 24gb" in page.locator("#gpu-table").inner_text()


def test_a_browser_finds_a_job_after_a_restart_and_no_secret(watched: Watched, page: Page) -> None:
    problems: list[str] = []
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    sources = []

    def visit(path: str) -> None:
        page.goto(watched.url + path)
        page.wait_for_load_state("networkidle")

    for name in ("cpu", "gpu-40gb-0", "gpu-24gb-1"):
        visit("/workers")
        page.locator(f"a:has-text('{name}@')").first.wait_for()
        sources.append(page.content())
        visit(f"/worker/{name}@{socket.gethostname()}")
        sources.append(page.content())
    visit("/broker")
    check_queues(page)
    address = watched.fleet.env["TRAINING_CONSOLE_URL"]
    dead = page.get_by_role("link", name="lost-job")
    assert dead.get_attribute("href") == f"{address}/jobs/lost-job"
    sources.append(page.content())
    link = page.get_by_role("link", name="Console", exact=True)
    assert link.get_attribute("href") == watched.fleet.env["TRAINING_CONSOLE_URL"].replace(
        "{", "%7B"
    )

    def stages_found() -> set[str]:
        visit("/tasks")
        page.locator("input[type=search]").fill(watched.job_id)
        page.wait_for_function("document.querySelectorAll('#tasks-table tbody tr').length == 4")
        sources.append(page.content())
        rows = page.locator("#tasks-table tbody tr").all_inner_texts()
        assert all(watched.job_id in row and "SUCCESS" in row for row in rows)
        return {name for name in ALL_STAGES for row in rows if name in row}

    assert stages_found() == ALL_STAGES
    page.locator("input[type=search]").fill("tenant=acme")
    page.wait_for_function("document.querySelectorAll('#tasks-table tbody tr').length == 2")
    watched.restart()
    assert stages_found() == ALL_STAGES
    visit("/tasks")
    page.locator("#tasks-table tbody tr").first.wait_for()
    sources.append(page.content())
    tasks = json.loads(watched.ask("/api/tasks")[1])
    [submitted] = [task_id for task_id, task in tasks.items() if task["name"] == SUBMIT]
    visit(f"/task/{submitted}")
    assert "job=signed name=shapes tenant=default" in page.locator("body").inner_text()
    job_link = page.get_by_role("link", name="Open the job")
    assert job_link.get_attribute("href") == f"{address}/jobs/signed"
    sources.append(page.content())
    sources += [watched.ask(path)[1] for path in ("/api/tasks", "/api/workers", "/metrics")]
    sources.append(watched.fleet.log())
    for secret in (SIGNATURE, BROKER_PASSWORD, watched.password):
        assert not [source for source in sources if secret in source], secret
    assert problems == []
