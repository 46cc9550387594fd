"""Pages of jobs in a real browser, on jobs that are recorded without a worker."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.events import CheckpointSaved, Progress, ValidationImages
from tasks.state.artifacts import JobArtifacts
from tasks.state.record import StageRecord
from tests.console.conftest import Console, image, job
from tests.integration.browsers import (
    is_wider_than_its_screen,
    log_in,
    nameless,
    outline,
    tab_to,
    violations,
    visit,
)

STEPS = (4, 8, 12)
COLORS = {4: "red", 8: "green", 12: "blue"}
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def page(browser: Browser, console: Console) -> Iterator[Page]:
    with visit(browser, console.url) as opened:
        log_in(opened, console.keys["acme"])
        yield opened


def stage(console: Console, job_id: str, name: str, left: JobArtifacts, *events: Any) -> None:
    token = console.state.begin(job_id, name, worker="w", queue="q", tag="t").token
    if events:
        console.state.write(job_id, token, list(events))
    done = StageRecord(queue="q", worker="w", attempt=token.attempt, started_at=0, seconds=1)
    console.state.finish_stage(job_id, token, name, done, left, None)


def samples(console: Console, job_id: str, step: int) -> ValidationImages:
    return ValidationImages(
        step=step,
        images=tuple(
            console.keep(
                f"jobs/{job_id}/validation/{step}-{prompt}.png",
                f"validation-{step:06d}-{prompt}-1.png",
                image(COLORS[step]),
            )
            for prompt in (1, 2)
        ),
    )


def trained(console: Console, client: httpx2.Client, name: str, loss: float = 1.0) -> str:
    """A job with samples at three steps, whose files of the steps 4 and 12 are published."""
    training = {
        "validation_prompts": ["a cat", HOSTILE],
        "validate_every_n_steps": 4,
        "max_train_steps": int(12 * loss),
    }
    job_id: str = client.post("/jobs", json=job(name=name, training=training)).json()["id"]
    for early in ("prepare", "cache"):
        stage(console, job_id, early, JobArtifacts())
    progress = [
        Progress(
            stage="train", done=step, total=12, unit="steps", per_second=2.0,
            loss=loss / step, learning_rate=1e-4 / step,
        )
        for step in range(1, 13)
    ]  # fmt: skip
    validations = tuple(samples(console, job_id, step) for step in STEPS)
    checkpoints = tuple(
        CheckpointSaved(
            step=step,
            state_key=f"jobs/{job_id}/{step}/state",
            weights=console.keep(
                f"jobs/{job_id}/{step}/weights", f"{name}.safetensors", bytes([step]) * 1000
            ),
        )
        for step in (4, 12)
    )
    left = JobArtifacts(checkpoints=checkpoints, validations=validations)
    stage(console, job_id, "train", left, *progress, *validations)
    publish(console, job_id, name, checkpoints)
    return job_id


def publish(console: Console, job_id: str, name: str, saved: tuple[CheckpointSaved, ...]) -> None:
    names = (f"{name}.safetensors", f"{name}-step00000004.safetensors")
    listed = [
        console.keep(f"outputs/{job_id}/{file}", file, bytes([it.step]) * 1000)
        for file, it in zip(names, reversed(saved), strict=True)
    ]
    manifest = f"outputs/{job_id}/manifest.json"
    console.store.put(manifest, json.dumps({"files": [it.model_dump() for it in listed]}).encode())
    keys = [it.key for it in listed]
    console.stage(
        job_id, "publish", JobArtifacts(manifest=manifest), files=keys, sha256=listed[0].sha256
    )


def test_a_steps_file_is_chosen_by_its_sample(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    job_id = trained(console, acme, "cat")
    page.goto(f"/jobs/{job_id}")
    slider = page.get_by_role("slider", name="Step")
    expect(page.get_by_role("img", name="a cat, at step 12")).to_be_visible()
    assert page.get_by_role("img", name=HOSTILE).count() == 1
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("img", name="a cat, at step 8")).to_be_visible()
    expect(
        page.get_by_text("No file was published for this step. Steps with a file: 4, 12.")
    ).to_be_visible()
    page.keyboard.press("Home")
    shown = page.get_by_role("img", name="a cat, at step 4")
    assert shown.evaluate("it => it.decode().then(() => it.naturalWidth)") == 96
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the file of step 4 (1.0 kB)").click()
    assert download.value.suggested_filename == "cat-step00000004.safetensors"
    assert download.value.path().read_bytes() == bytes([4]) * 1000

    # In the dialog, the arrow keys change the step, and Escape closes.
    page.get_by_role("link", name="a cat, at step 4").click()
    large = page.get_by_role("dialog")
    expect(large.get_by_role("img", name="a cat, at step 4")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(large.get_by_role("img", name="a cat, at step 8")).to_be_visible()
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


def test_results_name_their_steps_and_digests(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    job_id = trained(console, acme, "cat")
    page.goto(f"/jobs/{job_id}")
    expect(page.get_by_role("link", name="Download the result (1.0 kB)")).to_be_visible()
    row = page.get_by_role("row", name="cat-step00000004.safetensors")
    expect(row.get_by_role("cell").nth(1)).to_have_text("4")
    digest = row.get_by_role("button", name="Copy SHA-256 of cat-step00000004.safetensors")
    assert re.fullmatch("[0-9a-f]{64}", digest.get_attribute("title") or "")
    digest.click()
    expect(page.get_by_text("The SHA-256 is copied.")).to_be_visible()
    page.get_by_text("Events").last.click()
    expect(page.get_by_text("Made 2 samples at step 8")).to_be_visible()
    expect(page).to_have_title(re.compile("^succeeded · cat"))


def test_the_loss_has_a_logarithmic_axis_and_the_learning_rate(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    page.goto(f"/jobs/{trained(console, acme, 'cat')}")
    chart = page.get_by_role("img", name="Loss over steps")
    expect(chart).to_be_visible()
    expect(page.get_by_role("img", name="Learning rate over steps, 8.33e-06")).to_be_visible()
    before = chart.locator("svg text").all_inner_texts()
    page.get_by_role("switch", name="Logarithmic").check()
    expect(chart.get_by_text("0.1", exact=True)).to_be_visible()
    assert chart.locator("svg text").all_inner_texts() != before


def test_a_job_is_renamed_on_its_page(console: Console, acme: httpx2.Client, page: Page) -> None:
    job_id = trained(console, acme, "cat")
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("button", name="Rename").click()
    dialog = page.get_by_role("dialog", name="Rename this job")
    dialog.get_by_label("Title").fill("The red cat")
    dialog.get_by_label("Notes").fill(HOSTILE)
    dialog.get_by_label("Labels").fill("shelf=3\n=4")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_text("A label is name=value, or a name alone.")).to_be_visible()
    dialog.get_by_label("Labels").fill("shelf=3")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", level=1, name="The red cat")).to_be_visible()
    expect(page.get_by_text(HOSTILE, exact=True).first).to_be_visible()
    assert acme.get(f"/jobs/{job_id}").json()["labels"] == {"shelf": "3"}
    page.goto("/jobs?search=red")
    expect(page.get_by_role("link", name="The red cat")).to_be_visible()


def test_a_job_is_deleted_after_a_question(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    job_id = trained(console, acme, "cat")
    page.goto(f"/jobs/{job_id}")
    page.get_by_role("button", name="Delete").click()
    question = page.get_by_role("alertdialog", name="Delete this job?")
    expect(question.get_by_text(re.compile(r"This frees [\d.]+ kB"))).to_be_visible()
    question.get_by_role("button", name="Go back").click()
    expect(question).to_be_hidden()
    assert acme.get(f"/jobs/{job_id}").status_code == 200
    page.get_by_role("button", name="Delete").click()
    question.get_by_role("button", name="Delete for good").click()
    page.wait_for_url("**/jobs")
    expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
    assert acme.get(f"/jobs/{job_id}").status_code == 404


def test_the_page_of_a_job_deleted_elsewhere_is_left(acme: httpx2.Client, page: Page) -> None:
    job_id = acme.post("/jobs", json=job(name="cat")).json()["id"]
    page.goto(f"/jobs/{job_id}")
    expect(page.get_by_text("waiting", exact=True).first).to_be_visible()
    acme.post(f"/jobs/{job_id}:cancel")
    acme.delete(f"/jobs/{job_id}")
    page.wait_for_url("**/jobs")


def test_jobs_with_confusable_titles_are_compared(acme: httpx2.Client, page: Page) -> None:
    first, second, third = (acme.post("/jobs", json=job(name="dog")).json()["id"] for _ in range(3))
    acme.patch(f"/jobs/{first}", json={"title": f"dog ({second})"})
    page.goto(f"/compare?job={first}&job={second}&job={third}")
    for name in (f"dog ({second}) ({first})", f"dog ({second})", f"dog ({third})"):
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()


def test_the_slider_follows_samples_as_they_arrive(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    job_id = acme.post("/jobs", json=job(name="cat")).json()["id"]
    for early in ("prepare", "cache"):
        stage(console, job_id, early, JobArtifacts())
    token = console.state.begin(job_id, "train", worker="w", queue="q", tag="t").token
    made = [samples(console, job_id, step) for step in STEPS]
    console.state.write(job_id, token, made[:2], JobArtifacts(validations=tuple(made[:2])))
    page.goto(f"/jobs/{job_id}")
    slider = page.get_by_role("slider", name="Step")
    expect(slider).to_have_value("1")
    console.state.write(job_id, token, made[2:], JobArtifacts(validations=tuple(made)))
    expect(page.get_by_role("img", name="at step 12")).to_have_count(2)
    expect(slider).to_have_value("2")
    slider.press("ArrowLeft")
    expect(page.get_by_role("img", name="at step 8")).to_have_count(2)
    expect(slider).to_have_value("1")


def test_selected_jobs_are_compared(console: Console, acme: httpx2.Client, page: Page) -> None:
    for name, loss in (("cat", 1.0), ("dog", 2.0)):
        trained(console, acme, name, loss)
    page.goto("/jobs")
    page.get_by_label("Select cat").check()
    expect(page.get_by_text("1 job selected")).to_be_visible()
    expect(page.get_by_role("button", name="Compare")).to_be_hidden()
    page.get_by_label("Select dog").check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", level=1, name="Compare jobs").wait_for()
    chart = page.get_by_role("img", name="Losses over steps, cat and dog")
    expect(chart.get_by_text("dog", exact=True)).to_be_visible()
    row = page.get_by_role("row", name="max_train_steps")
    assert row.get_by_role("cell").all_inner_texts() == ["12", "24"]
    expect(page.get_by_role("row", name="lora_rank_dim")).to_have_count(0)
    page.get_by_role("slider", name="Step").focus()
    page.keyboard.press("Home")
    for name in ("cat", "dog"):
        expect(page.get_by_role("img", name=f"{name}: a cat, at step 4")).to_be_visible()
    page.get_by_role("switch", name="Logarithmic").check()
    expect(chart.get_by_text("0.1", exact=True)).to_be_visible()


def test_selected_jobs_are_cancelled_and_deleted(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    for name in ("one", "two", "three"):
        acme.post("/jobs", json=job(name=name))
    page.goto("/jobs")
    for name in ("one", "two"):
        page.get_by_label(f"Select {name}").check()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel jobs").click()
    expect(page.get_by_text("cancelled", exact=True)).to_have_count(2)
    expect(page.get_by_text("selected")).to_be_hidden()
    for name in ("one", "two", "three"):
        page.get_by_label(f"Select {name}").check()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("link", name="three")).to_be_visible()
    expect(page.get_by_role("link", name="one")).to_have_count(0)
    assert [it["name"] for it in acme.get("/jobs").json()["jobs"]] == ["three"]


def test_the_list_is_filtered_and_shows_the_last_sample(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    trained(console, acme, "cat")
    acme.post("/jobs", json={**job(name="waits", labels={"shelf": "3"})})
    page.goto("/jobs")
    expect(page.get_by_text("waiting", exact=True)).to_be_visible()
    thumbnail = page.locator("tr", has_text="cat").locator("img")
    assert thumbnail.evaluate("it => it.decode().then(() => it.naturalWidth)") == 96
    page.get_by_label("Search").press_sequentially("shelf=3")
    expect(page.get_by_role("link", name="cat")).to_have_count(0)
    page.get_by_label("Search").fill("")
    page.get_by_label("Type").select_option("SDXL LoRA")
    expect(page.get_by_text("No jobs match.")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/jobs\?type=SDXL_LORA$"))
    page.get_by_label("Type").select_option("FLUX LoRA")
    page.get_by_label("Submitted").select_option("Last 24 hours")
    expect(page.get_by_role("link", name="cat")).to_be_visible()
    expect(page).to_have_url(re.compile(r"days=1"))
    page.reload()
    expect(page.get_by_label("Submitted")).to_have_value("1")
    # A label without a name is text; another tenant's jobs are not asked for.
    page.goto("/jobs?search==a=b")
    expect(page.get_by_text("No jobs match.")).to_be_visible()
    page.goto("/jobs?tenant=zoo")
    expect(page.get_by_role("link", name="cat")).to_be_visible()


def test_a_stage_without_progress_shows_its_time(
    console: Console, acme: httpx2.Client, page: Page
) -> None:
    job_id = acme.post("/jobs", json=job(name="cat")).json()["id"]
    page.goto(f"/jobs/{job_id}")
    expect(page.get_by_text("waiting", exact=True).first).to_be_visible()
    token = console.state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t").token
    expect(page.get_by_text("running", exact=True)).to_be_visible()
    expect(page.locator(".stage-running time")).to_have_text(re.compile(r"[1-9]\d* s"))
    assert page.get_by_role("progressbar").get_attribute("value") is None
    console.state.fail(job_id, token, JobError("broken"))
    expect(page.get_by_text("failed", exact=True).first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_suit_phones_and_screen_readers(
    browser: Browser, console: Console, acme: httpx2.Client, scheme: Any
) -> None:
    ids = [trained(console, acme, name) for name in ("cat", "a-name-that-is-rather-long" * 3)]
    with visit(browser, console.url, width=390, height=844, scheme=scheme) as page:
        log_in(page, console.keys["acme"])
        for path, settled in (
            ("/jobs", "table"),
            (f"/jobs/{ids[0]}", ".chart svg"),
            (f"/compare?job={ids[0]}&job={ids[1]}", ".chart svg"),
            ("/compare", "select"),
        ):
            page.goto(path)
            page.locator(settled).first.wait_for()
            assert not is_wider_than_its_screen(page), path
            assert nameless(page) == [], path
            assert violations(page) == [], path
            levels, _ = outline(page)
            assert levels.count(1) == 1, path
            assert all(b - a <= 1 for a, b in pairwise(levels)), path


def test_jobs_are_selected_and_deleted_by_keyboard(
    browser: Browser, console: Console, acme: httpx2.Client
) -> None:
    trained(console, acme, "cat")
    with visit(browser, console.url) as page:
        log_in(page, console.keys["acme"])
        tab_to(page, "Select cat")
        page.keyboard.press("Space")
        page.get_by_role("button", name="Delete").wait_for()
        page.keyboard.press("Shift+Tab")
        page.get_by_role("button", name="Delete").focus()
        page.keyboard.press("Enter")
        page.get_by_role("alertdialog").wait_for()
        tab_to(page, "Delete for good")
        page.keyboard.press("Enter")
        expect(page.get_by_text("There are no jobs yet.")).to_be_visible()


def test_a_key_that_only_reads_changes_nothing(
    browser: Browser, console: Console, acme: httpx2.Client
) -> None:
    job_id = trained(console, acme, "cat")
    key = console.services.api_keys.create("reader", "acme", scopes=[Scope.JOBS_READ])
    try:
        with visit(browser, console.url) as page:
            log_in(page, key)
            page.get_by_label("Select cat").check()
            expect(page.get_by_role("button", name="Delete")).to_be_hidden()
            page.goto(f"/jobs/{job_id}")
            page.get_by_role("link", name="Compare").wait_for()
            for name in ("Delete", "Rename", "Cancel"):
                expect(page.get_by_role("button", name=name)).to_be_hidden()
            expect(page.get_by_role("img", name="a cat, at step 12")).to_have_count(0)
    finally:
        console.services.api_keys.revoke("reader")
