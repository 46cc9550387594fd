"""Two consoles behind a proxy, one of them killed: nothing is lost for good."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect

from tasks.access.api_keys import ApiKeys
from tasks.state.connection import connect
from tests.console.conftest import image, job
from tests.integration.browsers import chromium, field, log_in
from tests.integration.fleets import PATIENCE_S, free_port
from tests.integration.sticky_proxy import StickyProxy
from tests.waiting import wait_until

TUS = {"Tus-Resumable": "1.0.0"}
# A console writes as soon as it has 1 MiB.
PART = 2**20 + 1
DATA = os.urandom(3 * PART)


class Consoles:
    """Two consoles and their proxy.

    Attributes:
        url: The proxy's address.
        key: A tenant's key.
        api_keys: The keys, which the consoles share.
        redis: The broker.
        folder: The folder that the consoles share.
    """

    def __init__(self, home: Path, broker_url: str) -> None:
        self._home, self._broker_url = home, broker_url
        self.folder = home / "shared"
        self._ports = [free_port(), free_port()]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.redis = connect(broker_url)
        self.api_keys = ApiKeys(home / "api-keys.json")
        self.key = self.api_keys.create("acme", "acme")
        for number in range(2):
            self._processes.append(self._start(number))
        self.proxy = StickyProxy(self._ports)
        self.url = self.proxy.url

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        env = {name: it for name, it in os.environ.items() if not name.startswith("TRAINING_")}
        env |= {
            "TRAINING_HOME": str(self._home / f"home-{number}"),
            "TRAINING_BROKER_URL": self._broker_url,
            "TRAINING_STORE_URL": (self._home / "store").as_uri(),
            "TRAINING_API_KEYS": str(self._home / "api-keys.json"),
            "TRAINING_CONSOLE_DIR": str(self.folder),
            "TRAINING_CONSOLE_PORT": str(self._ports[number]),
            "TRAINING_API_RATE_LIMIT": "100000",
        }
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "console"], env=env, stdout=log, stderr=log
            )

    def ensure_running(self) -> None:
        """Start the consoles that were killed, and wait until both answer."""
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                self._processes[number] = self._start(number)
        for port in self._ports:
            wait_until(
                lambda port=port: _answers(port),  # type: ignore[misc]
                timeout_s=PATIENCE_S,
                description="the console answers",
                detail=self.log,
            )

    def kill(self, number: int) -> None:
        """Kill a console."""
        self._processes[number].kill()
        self._processes[number].wait()

    def client(self) -> httpx2.Client:
        """Return a client of the API, at the proxy."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.Client(base_url=f"{self.url}/v1", headers=headers, timeout=30)

    def log(self) -> str:
        """Return what the consoles have logged."""
        return (self._home / "log").read_text("utf-8", "replace")

    def close(self) -> None:
        """End everything."""
        for process in self._processes:
            process.kill()
            process.wait()
        self.proxy.close()
        self.redis.close()


def _answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/v1/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Consoles]:
    consoles = Consoles(tmp_path_factory.mktemp("consoles"), broker_url)
    yield consoles
    consoles.close()


@pytest.fixture
def consoles(started: Consoles) -> Consoles:
    started.ensure_running()
    return started


def browser_session(consoles: Consoles) -> tuple[httpx2.Client, int]:
    """Log in; return the browser, and the number of the console that has its session."""
    browser = httpx2.Client(base_url=consoles.url, headers={"Origin": consoles.url}, timeout=30)
    assert browser.post("/login", data={"key": consoles.key}).status_code == 303
    return browser, consoles.proxy.console_of(browser.cookies["training_session"])


def test_a_session_outlives_its_console_and_ends_everywhere(consoles: Consoles) -> None:
    browser, number = browser_session(consoles)
    other, _ = browser_session(consoles)
    cookie = browser.cookies["training_session"]
    assert browser.get("/jobs").status_code == 200
    consoles.kill(number)
    assert browser.get("/jobs").status_code == 200
    assert browser.get("/v1/jobs").status_code == 200
    browser.post("/logout")
    browser.cookies.set("training_session", cookie)
    assert browser.get("/v1/jobs").status_code == 401
    consoles.ensure_running()
    assert browser.get("/v1/jobs").status_code == 401
    assert other.get("/v1/jobs").status_code == 200


def test_a_revoked_key_is_refused_by_every_console(consoles: Consoles) -> None:
    key = consoles.api_keys.create("brief", "acme")

    def statuses() -> set[int]:
        headers = {"Authorization": f"Bearer {key}"}
        return {
            httpx2.get(f"{consoles.url}/v1/jobs", headers=headers).status_code for _ in range(4)
        }

    assert statuses() == {200}
    consoles.api_keys.revoke("brief")
    assert statuses() == {401}


def test_an_upload_continues_at_another_console(consoles: Consoles) -> None:
    with consoles.client() as client:
        length = {"Upload-Length": str(len(DATA))}
        created = client.post("/uploads", headers={**TUS, **length})
        upload = f"/uploads/{created.headers['location'].rpartition('/')[2]}"
        browser, number = browser_session(consoles)
        began, killed = threading.Event(), threading.Event()

        def part() -> Iterator[bytes]:
            yield DATA[:PART]
            began.set()
            killed.wait(30)
            yield DATA[PART : 2 * PART]

        def send() -> None:
            with pytest.raises(httpx2.TransportError):
                browser.patch(f"/v1{upload}", content=part(), headers=chunk(0))

        sender = threading.Thread(target=send)
        sender.start()
        assert began.wait(30)
        wait_until(
            lambda: int(client.head(upload, headers=TUS).headers["upload-offset"]) > 0,
            timeout_s=PATIENCE_S,
            description="the console writes",
        )
        # The console that writes holds the upload's lock for the other one too.
        refused = [
            client.patch(upload, content=DATA[:1], headers=chunk(0)).status_code for _ in range(2)
        ]
        assert refused == [409, 409]
        consoles.kill(number)
        killed.set()
        sender.join(30)
        offset = int(client.head(upload, headers=TUS).headers["upload-offset"])
        assert PART - 1 <= offset <= 2 * PART
        done = client.patch(upload, content=DATA[offset:], headers=chunk(offset))
        assert done.status_code == 204, done.text
        assert client.get(upload).json()["sha256"] == hashlib.sha256(DATA).hexdigest()


def chunk(offset: int) -> dict[str, str]:
    kind = {"Content-Type": "application/offset+octet-stream"}
    return {**TUS, **kind, "Upload-Offset": str(offset)}


def test_a_stream_of_events_continues_at_another_console(consoles: Consoles) -> None:
    with consoles.client() as client:
        job_id = client.post("/jobs", json=job()).json()["id"]
    browser, number = browser_session(consoles)
    url, last = f"/v1/jobs/{job_id}/events", ""
    kinds: list[str] = []
    with browser.stream("GET", url) as stream:
        lines = stream.iter_lines()
        while not kinds:
            name, _, value = next(lines).partition(": ")
            kinds += [value] if name == "event" else []
            last = value if name == "id" else last
        consoles.kill(number)
        with pytest.raises(httpx2.TransportError):
            list(lines)
    browser.post(f"/v1/jobs/{job_id}:cancel")
    rest = browser.get(url, headers={"Last-Event-ID": last}).text
    kinds += re.findall(r"^event: (\w+)", rest, re.MULTILINE)
    assert (kinds[0], kinds[-1]) == ("accepted", "ended")
    assert len(kinds) == len(set(kinds))


def test_an_open_form_continues_at_another_console(consoles: Consoles, tmp_path: Path) -> None:
    cat = tmp_path / "cat.png"
    cat.write_bytes(image(size=(512, 512)))
    with chromium() as browser, browser.new_context(base_url=consoles.url) as context:
        page = context.new_page()
        log_in(page, consoles.key)
        [session] = [it["value"] for it in context.cookies() if it["name"] == "training_session"]
        page.goto("/new")
        field(page, "Name").fill("my-cat")
        page.locator("input[type=file]").set_input_files(cat)
        expect(page.get_by_label("Caption of cat.png")).to_be_visible(timeout=60_000)
        page.get_by_label("Caption of cat.png").fill("a cat")
        page.get_by_label("Caption of cat.png").blur()
        wait_until(
            lambda: is_kept(consoles),
            timeout_s=PATIENCE_S,
            description="the form is kept",
            detail=consoles.log,
        )
        page.evaluate("window.isTheOldPage = true")
        consoles.kill(consoles.proxy.console_of(session))
        page.wait_for_function("!window.isTheOldPage", timeout=60_000)
        expect(field(page, "Name")).to_have_value("my-cat", timeout=60_000)
        expect(page.get_by_label("Caption of cat.png")).to_have_value("a cat", timeout=60_000)
        page.get_by_role("button", name="Start training").click()
        page.wait_for_url(re.compile("/jobs/"), timeout=60_000)
        expect(page.get_by_role("heading", level=1)).to_contain_text("my-cat")


def is_kept(consoles: Consoles) -> bool:
    """Return whether the form has its name, and the image its caption."""
    for key in consoles.redis.scan_iter("training:draft:*"):
        if consoles.redis.type(key) == "string":
            kept = json.loads(str(consoles.redis.get(key)))
            caption = consoles.folder / "drafts" / key.rpartition(":")[2] / "cat.txt"
            if kept["draft"]["name"] == "my-cat" and caption.exists():
                return bool(caption.read_text("utf-8") == "a cat\n")
    return False


def test_what_consoles_keep_in_the_broker_expires(consoles: Consoles) -> None:
    browser_session(consoles)
    keys = [
        *consoles.redis.scan_iter("training:session:*"),
        *consoles.redis.scan_iter("training:draft:*"),
    ]
    assert keys
    day = timedelta(days=1).total_seconds()
    assert all(0 < int(consoles.redis.ttl(key)) <= day for key in keys)
