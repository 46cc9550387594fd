"""axe-core on the pages that no other test opens with it: login, fleet, datasets, a filled form."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from routing.classes import MemoryClass
from tasks.data.stored_datasets import StoredDatasets
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.console.conftest import Console, image
from tests.integration.browsers import (
    is_wider_than_its_screen,
    log_in,
    violations,
    visit,
)

expect.set_options(timeout=60_000)
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def dataset_id(console: Console, acme: httpx2.Client) -> Iterator[str]:
    """A saved dataset with a finding."""
    files = [("file", ("cat.png", image(size=(64, 64)))), ("file", ("cat.txt", b"a cat"))]
    answer = acme.post("/datasets:multipart", params={"name": "cats"}, files=files)
    assert answer.status_code == 201, answer.text
    yield answer.json()["id"]
    StoredDatasets(console.store, "acme").remove(answer.json()["id"])


@pytest.fixture
def fleet(console: Console) -> None:
    """An emulated GPU, and a real one in quarantine."""
    for name, gpu_mib, reason in (("a", 0, None), ("b", 81920, "XID 79")):
        info = WorkerInfo(
            queues=("gpu.40gb",), memory_class=MemoryClass.GB40, gpu_mib=gpu_mib, quarantined=reason
        )
        WorkerHeartbeat(console.redis, name, info, timedelta(minutes=5)).renew()


def check(page: Page, path: str) -> None:
    assert violations(page) == [], path
    assert not is_wider_than_its_screen(page), path


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_passes_axe_core(
    browser: Browser, console: Console, dataset_id: str, tmp_path: Path, width: int, scheme: Any
) -> None:
    with visit(browser, console.url, width=width, scheme=scheme) as page:
        page.goto("/login")
        check(page, "/login")
        log_in(page, console.keys["acme"])
        for path, settled in (
            ("/jobs", "main .empty, main table"),
            ("/fleet", "article"),
            ("/datasets", "main a[href*=datasets]"),
            (f"/datasets/{dataset_id}", "main textarea"),
            ("/datasets/new", "main .drop"),
        ):
            page.goto(path)
            page.locator(settled).first.wait_for()
            check(page, path)
        # Images with and without a caption, and one with a problem.
        page.goto("/new")
        page.locator(".legend").wait_for()
        files = {"cat.png": image(), "cat.txt": b"a cat", "dog.png": image("blue", (512, 512))}
        for name, data in {**files, "broken.png": image("green")[:80]}.items():
            (tmp_path / name).write_bytes(data)
        page.locator("input[type=file]").first.set_input_files(sorted(tmp_path.iterdir()))
        expect(page.get_by_role("row", name="broken.png")).to_be_visible()
        check(page, "/new")
