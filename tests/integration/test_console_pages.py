import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tasks.state.connection import connect
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.integration.browsers import (
    chromium,
    field,
    is_wider_than_its_screen,
    log_in,
    nameless,
    outline,
    tab_to,
    violations,
    visit,
)
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.integration.test_published_file import generated_image
from tests.waiting import wait_until
from worker.local.embedded_broker import find_running
from worker.miniature.dataset import draw_dataset

HOSTILE = "<img src=x onerror=alert(1)> <script>alert(2)</script>"
expect.set_options(timeout=60_000)


@dataclass
class Console:
    """The console of a fleet, and what opens it."""

    address: str
    key: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def console(fleet: Fleet) -> Console:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{fleet.console}/login", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    wait_until(answers, timeout_s=PATIENCE_S, description="the console", detail=fleet.log)
    return Console(fleet.console, (fleet.home / "console-key").read_text("utf-8").strip())


@pytest.fixture(scope="module")
def finished(
    fleet: Fleet, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What was published of a job that is over."""
    images = tmp_path_factory.mktemp("finished")
    draw_dataset(images)
    job = short_job(tiny_model, images)
    job["training"] |= {
        "validation_prompts": ["a red square"],
        "num_validation_images_per_prompt": 1,
        "validate_every_n_steps": 6,
    }
    ran = fleet.submit(job, "--watch")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    return ran.documents[-1]


@pytest.fixture
def page(browser: Browser, console: Console) -> Iterator[Page]:
    with visit(browser, console.address) as opened:
        log_in(opened, console.key)
        yield opened


def fill_in_a_short_flux_job(page: Page, tiny_model: Path, steps: int) -> None:
    page.get_by_role("link", name="New job").first.click()
    page.get_by_role("heading", level=1, name="New job").wait_for()
    field(page, "Name").fill("my-shapes")
    field(page, "Base model").fill(str(tiny_model))
    field(page, "Resolution").fill("64")
    field(page, "Steps").fill(str(steps))
    field(page, "Learning rate").fill("0.01")


def step_of_the_loss(page: Page) -> int:
    text = page.get_by_role("region", name="Loss").inner_text()
    found = re.search(r"at step ([\d,]+)", text)
    return int(found.group(1).replace(",", "")) if found else 0


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, while they load
def test_a_user_trains_a_lora_from_images(
    page: Page, tiny_model: Path, images: Path, tmp_path: Path
) -> None:
    (images / "broken.png").write_bytes((images / "01.png").read_bytes()[:200])
    (images / "broken.txt").write_text("a broken one", "utf-8")
    (images / "01.txt").write_text(HOSTILE, "utf-8")
    fill_in_a_short_flux_job(page, tiny_model, steps=40)
    expect(page.get_by_text("FLUX works best from 768 px up")).to_be_visible()
    expect(page.get_by_role("complementary", name="This job")).to_contain_text("40 GB class")

    # The images, and the report of their problems.
    page.locator("input[type=file]").set_input_files(sorted(images.iterdir()))
    report = page.get_by_role("table", name="Problems of the images")
    row = report.get_by_role("row", name="broken.png")
    expect(row).to_contain_text("error")
    expect(row).to_contain_text("cannot be decoded")
    expect(page.get_by_label("Caption of 01.png")).to_have_value(HOSTILE)
    image = page.get_by_role("img", name=HOSTILE)
    image.scroll_into_view_if_needed()
    assert image.evaluate("it => it.decode().then(() => it.naturalWidth)") == 128

    # The broken image stops the start, and the panel names it.
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("button", name="1 problem to fix")).to_be_visible()
    row.get_by_role("button", name="Remove broken.png").click()
    expect(page.get_by_text("28 valid images")).to_be_visible()
    page.get_by_label("Caption of 02.png").fill("a caption written in the browser")
    expect(page.get_by_text("Changed since the last check")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/jobs/*")

    # The loss curve grows, also after a reload.
    wait_until(lambda: step_of_the_loss(page) > 0, timeout_s=PATIENCE_S, description="a loss")
    first = step_of_the_loss(page)
    page.reload()
    wait_until(lambda: step_of_the_loss(page) > first, timeout_s=PATIENCE_S, description="it moves")
    expect(page.get_by_role("img", name="Loss over steps")).to_be_visible()
    expect(page.get_by_text("succeeded", exact=True)).to_be_visible()

    # The file that is downloaded is the one that is described, and it changes an image.
    with page.expect_download() as download:
        page.get_by_role("link", name="Download my-shapes.safetensors", exact=True).click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "my-shapes.safetensors"
    digest = page.get_by_role("button", name="Copy SHA-256 of my-shapes.safetensors", exact=True)
    expect(digest).to_have_attribute("title", hashlib.sha256(file.read_bytes()).hexdigest())
    assert (
        np.abs(generated_image(tiny_model, file) - generated_image(tiny_model, None)).max()
        > 1 / 255
    )


def test_all_problems_are_shown_beside_their_fields(page: Page, tiny_model: Path) -> None:
    fill_in_a_short_flux_job(page, tiny_model, steps=0)
    field(page, "Name").fill("no name")
    field(page, "LoRA rank").fill("many")
    page.get_by_text("Advanced options").click()
    page.get_by_label("Find an option").fill("clip tokenizer")
    field(page, "Tokens that CLIP reads").fill("78")
    page.get_by_role("button", name="Start training").click()
    panel = page.get_by_role("complementary", name="This job")
    expect(panel.get_by_text("5 problems to fix")).to_be_visible()
    expect(panel).to_contain_text("Tokens that CLIP reads must be at most 77")
    expect(panel).to_contain_text("LoRA rank must be a whole number")
    for label in ("Name", "Steps", "LoRA rank", "Tokens that CLIP reads"):
        expect(field(page, label)).to_have_attribute("aria-invalid", "true")
        described_by = field(page, label).get_attribute("aria-describedby") or ""
        assert page.locator(f"#{described_by.split()[0]}").inner_text()
    expect(page.get_by_text("has no images; add some").first).to_be_visible()


def test_the_file_has_only_values_that_differ_from_the_preset(page: Page) -> None:
    page.goto("/new")
    expect(page.get_by_role("radio", name=re.compile("flux_lora_1x40gb "))).to_be_checked()
    field(page, "LoRA rank").fill("16")
    page.get_by_text("Show as a file").click()
    expect(page.get_by_label("The job as a file")).to_have_text(
        "name: lora\npreset: flux_lora_1x40gb\ntraining:\n  lora_rank_dim: 16\n"
    )
    # A reload keeps it.
    page.reload()
    expect(field(page, "LoRA rank")).to_have_value("16")
    page.get_by_role("button", name="Reset LoRA rank").click()
    expect(field(page, "LoRA rank")).to_have_value("4")
    page.get_by_role("radio", name=re.compile("SDXL textual inversion")).check()
    expect(field(page, "New word")).to_be_visible()
    expect(page.get_by_role("radio", name=re.compile("sdxl_textual_inversion"))).to_be_checked()
    expect(page.get_by_text("16 GB class").first).to_be_visible()


def test_a_job_is_cancelled_published_and_run_again(
    page: Page, fleet: Fleet, job: dict[str, Any]
) -> None:
    job["name"] = "long"
    job["training"] |= {"max_train_steps": 5000, "save_every_n_steps": 1000}
    job_id = fleet.submit(job).documents[0]["job_id"]
    page.goto(f"/jobs/{job_id}")
    wait_until(lambda: step_of_the_loss(page) > 0, timeout_s=PATIENCE_S, description="it trains")
    assert violations(page) == []
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("paused", exact=True)).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("running", exact=True).first).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel and publish").click()
    expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Download long.safetensors", exact=True)).to_be_visible()
    page.get_by_role("button", name="Copy link to long.safetensors", exact=True).click()
    expect(page.get_by_text("Anyone with this link can download the file")).to_be_visible()

    page.get_by_role("link", name="Run again with changes").click()
    page.get_by_role("heading", level=1, name="New job").wait_for()
    expect(field(page, "Steps")).to_have_value("5000")
    expect(field(page, "Resolution")).to_have_value("64")
    expect(page.get_by_label("Source", exact=True)).to_have_value("IMAGE_CAPTION_DIR_DATASET")
    field(page, "Steps").fill("4")
    page.get_by_text("Advanced options").click()
    page.get_by_label("Find an option").fill("checkpoint every")
    field(page, "Checkpoint every (steps)").fill("4")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile(rf"/jobs/(?!{job_id})"))
    expect(page.get_by_text("succeeded", exact=True)).to_be_visible()
    new_id = page.url.rpartition("/")[2]
    assert fleet.record(new_id).job.training.max_train_steps == 4
    assert fleet.record(new_id).job.training.seed == fleet.record(job_id).job.training.seed


def test_jobs_are_searched_and_samples_are_shown(page: Page, finished: dict[str, Any]) -> None:
    page.get_by_label("Search").fill(finished["job_id"][:10])
    expect(page.get_by_role("link", name="shapes")).to_have_count(1)
    page.get_by_label("Status").select_option("failed")
    expect(page.get_by_text("No jobs match")).to_be_visible()
    page.get_by_label("Status").select_option("succeeded")
    page.get_by_role("link", name="shapes").click()
    image = page.get_by_role("img", name="a red square, at step 12")
    expect(image).to_be_visible()
    assert image.evaluate("it => it.decode().then(() => it.naturalWidth)") == 64


def test_the_fleet_shows_gpus_and_quarantine_reasons(page: Page, fleet: Fleet) -> None:
    url = find_running(fleet.home)
    assert url is not None
    with connect(url) as client:
        remote = WorkerInfo(
            queues=("gpu.80gb",), memory_class=80, gpu_name="NVIDIA A100", gpu_mib=81920,
            quarantined="XID 79: the GPU has fallen off the bus",
        )  # fmt: skip
        heartbeat = WorkerHeartbeat(client, "gpu-80gb-9@elsewhere", remote, timedelta(minutes=2))
        heartbeat.renew()
        page.get_by_role("link", name="Fleet").click()
        gpu = page.get_by_role("article", name="gpu-80gb-9@elsewhere")
        expect(gpu).to_contain_text("quarantined")
        expect(gpu).to_contain_text("XID 79: the GPU has fallen off the bus")
        expect(gpu).to_contain_text("80.0 GiB")
        heartbeat.deregister()
        expect(gpu).to_have_count(0)
    expect(page.get_by_role("article")).to_have_count(3)
    row = page.get_by_role("table", name="Queues").get_by_role("row", name="gpu.80gb")
    expect(row).to_contain_text("by no worker")


def test_a_job_is_submitted_by_keyboard_alone(
    browser: Browser, console: Console, tiny_model: Path, images: Path
) -> None:
    with visit(browser, console.address) as page:
        page.goto("/")
        expect(page.get_by_label("Key")).to_be_focused()
        page.keyboard.type(console.key)
        page.keyboard.press("Enter")
        page.get_by_role("heading", level=1, name="Jobs").wait_for()
        tab_to(page, "New job")
        page.keyboard.press("Enter")
        page.get_by_role("heading", level=1, name="New job").wait_for()
        tab_to(page, "Skip to main content")
        page.keyboard.press("Enter")
        tab_to(page, "FLUX LoRA")
        for label, text in (("Name", "by-keyboard"), ("Base model", str(tiny_model))):
            tab_to(page, label)
            page.keyboard.press("Control+a")
            page.keyboard.type(text)
        tab_to(page, "Choose images")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(sorted(images.iterdir()))
        expect(page.get_by_text("28 valid images")).to_be_visible()
        for label, text in (
            ("Resolution", "64"),
            ("Steps", "4"),
        ):
            tab_to(page, label)
            page.keyboard.press("Control+a")
            page.keyboard.type(text)
        tab_to(page, "Advanced options")
        page.keyboard.press("Enter")
        page.get_by_label("Find an option").wait_for()
        tab_to(page, "Find an option")
        page.keyboard.type("cache")
        expect(page.get_by_role("switch", name="Cache latents")).to_be_visible()
        expect(page.get_by_role("heading", name="Optimizer and learning rate")).to_be_hidden()
        tab_to(page, "Cache latents")
        page.keyboard.press("Space")
        tab_to(page, "Start training")
        page.keyboard.press("Enter")
        page.wait_for_url("**/jobs/*")
        expect(page.get_by_text("succeeded", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_suits_phones_and_screen_readers(
    browser: Browser, console: Console, finished: dict[str, Any], scheme: Any
) -> None:
    with visit(browser, console.address, width=390, height=844, scheme=scheme) as page:
        log_in(page, console.key)
        for path, heading, settled in (
            ("/jobs", "Jobs", "table"),
            (f"/jobs/{finished['job_id']}", "shapes", ".chart svg"),
            ("/fleet", "Fleet", "article"),
            ("/datasets", "Datasets", ".empty"),
            ("/datasets/new", "New dataset", ".drop"),
            ("/new", "New job", ".legend"),
        ):
            page.goto(path)
            page.get_by_role("heading", level=1, name=heading).wait_for()
            page.locator(settled).first.wait_for()
            if path == "/new":
                page.get_by_text("Advanced options").click()
                page.get_by_label("Find an option").wait_for()
                assert violations(page) == [], "a folded form"
                for section in page.locator(".options-group > summary").all():
                    section.click()
                field(page, "Beta 1").wait_for()
                field(page, "Folder of the results").wait_for()
            assert violations(page) == [], path
            assert not is_wider_than_its_screen(page), path
            assert nameless(page) == [], path
            levels, landmarks = outline(page)
            assert levels.count(1) == 1, path
            assert all(b - a <= 1 for a, b in pairwise(levels)), path
            assert {"banner", "navigation", "main"} <= landmarks, path
        # The system's theme, until the user chooses the other one.
        dark = scheme == "dark"
        assert is_dark(page) == dark
        page.get_by_role("button", name="Switch between light and dark").click()
        assert is_dark(page) != dark
        page.reload()
        assert is_dark(page) != dark


def is_dark(page: Page) -> bool:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(value) for value in re.findall(r"\d+", colour)[:3]) < 3 * 128


def test_every_page_needs_a_key(browser: Browser, console: Console) -> None:
    with visit(browser, console.address) as page:
        for path in ("/", "/new", "/jobs", "/fleet", "/jobs/any"):
            page.goto(path)
            expect(page).to_have_url(re.compile("/login"))
        assert violations(page) == []
        page.get_by_label("Key").fill("twk_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("unknown or revoked, or has expired")
        log_in(page, console.key)
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(re.compile("/login"))
        page.goto("/jobs")
        expect(page).to_have_url(re.compile("/login"))
