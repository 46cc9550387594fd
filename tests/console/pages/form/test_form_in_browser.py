"""The form's options and its start, in a real browser: at a desk, on a phone, zoomed and dark."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from routing.classes import MemoryClass
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.console.conftest import Console
from tests.integration.browsers import (
    field,
    is_wider_than_its_screen,
    log_in,
    tab_to,
    violations,
    visit,
)

expect.set_options(timeout=60_000)
pytestmark = pytest.mark.timeout(240)


def opened(page: Page, console: Console) -> Page:
    log_in(page, console.keys["acme"])
    page.goto("/new")
    page.locator(".legend").wait_for()
    return page


@pytest.fixture
def page(browser: Browser, console: Console) -> Iterator[Page]:
    # An emulated GPU of one class, and a real one of another.
    for name, memory_class, gpu_mib in (("a", MemoryClass.GB40, 0), ("b", MemoryClass.GB24, 24576)):
        queues = (f"gpu.{memory_class}",)
        info = WorkerInfo(queues=queues, memory_class=memory_class, gpu_mib=gpu_mib)
        WorkerHeartbeat(console.redis, name, info, timedelta(minutes=5)).renew()
    with visit(browser, console.url) as found:
        yield opened(found, console)


def test_the_panel_and_the_bar_follow_the_job(page: Page) -> None:
    panel = page.get_by_role("complementary", name="This job")
    bar = page.get_by_role("region", name="Start")
    # An emulated GPU is named so, and has no time from real ones.
    expect(panel).to_contain_text("40 GB class, emulated on the CPU")
    expect(panel).to_contain_text("only emulated GPUs of this class")
    expect(bar).to_contain_text("none yet")
    card = page.locator("label", has_text="24 GB card, lowest memory")
    expect(card).to_contain_text("runs in the 40 GB class")
    expect(card).to_contain_text("emulated")
    expect(page.get_by_text("2 to 3 times as long as SDXL")).to_be_visible()
    # The preset is not warned about, only that the GPU is emulated.
    expect(panel.locator(".note-warning")).to_have_count(1)

    page.get_by_role("radio", name="SDXL LoRA").check()
    expect(panel).to_contain_text("Not measured on this fleet; published for an RTX 3090")
    expect(bar).to_contain_text(re.compile(r"about \d+ h"))
    expect(panel).not_to_contain_text("emulated")
    # Required options that are still empty are named by their labels, and hide no estimate.
    page.get_by_role("radio", name="SDXL textual inversion").check()
    expect(panel).to_contain_text("Still open: New word, Similar word, Subject of the images.")
    expect(panel).to_contain_text("16 GB class")
    page.get_by_role("button", name="Start training").click()
    expect(field(page, "Similar word")).to_have_attribute("aria-invalid", "true")
    expect(bar.get_by_role("button", name=re.compile("problems to fix"))).to_be_visible()


def test_options_are_found_by_label_name_help_and_group(page: Page) -> None:
    page.get_by_text("Advanced options").click()
    expect(field(page, "Beta 1")).to_have_count(0)
    search = page.get_by_label("Find an option")
    for words, label in (
        ("beta 1", "Beta 1"),
        ("optimizer.beta1", "Beta 1"),
        ("decay of the mean of the gradients", "Beta 1"),
        ("samples", "Images per sample prompt"),
        ("length and checkpoints", "Seed"),
    ):
        search.fill(words)
        expect(field(page, label)).to_be_visible()
    expect(field(page, "Beta 1")).to_be_hidden()
    # Those that the form shows above are offered there.
    search.fill("rank")
    page.get_by_role("button", name="LoRA rank").click()
    expect(field(page, "LoRA rank")).to_be_focused()


def test_values_are_read_and_refused_in_the_forms_own_words(page: Page) -> None:
    panel = page.get_by_role("complementary", name="This job")
    field(page, "Learning rate").fill("0,0002")
    field(page, "Sample prompts").fill("a photo of ohwx")
    expect(field(page, "Samples every (steps)")).to_have_value("250")
    page.get_by_text("Show as a file").click()
    source = page.get_by_label("The job as a file")
    expect(source).to_contain_text("transformer_learning_rate: 0.0002")
    expect(source).to_contain_text("validate_every_n_steps: 250")
    field(page, "Learning rate").fill("fast")
    field(page, "LoRA rank").fill("9999999")
    expect(panel).to_contain_text("Learning rate must be a number")
    expect(panel).to_contain_text("LoRA rank must be at most 1024")
    expect(panel.locator(".note-error")).not_to_contain_text("lora_rank_dim")
    field(page, "Learning rate").fill("1e-4")
    field(page, "LoRA rank").fill("1024")
    page.get_by_text("Advanced options").click()
    page.get_by_label("Find an option").fill("gradient checkpointing")
    page.get_by_label("Gradient checkpointing").select_option("off")
    expect(panel).to_contain_text("set a smaller “LoRA rank”")


# A desktop, a phone, and a desktop at 200 %.
@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(1280, 900, "dark"), (390, 844, "dark"), (640, 450, "light")],
    ids=["desktop", "phone", "zoomed"],
)
def test_the_form_suits_every_screen(
    browser: Browser, console: Console, width: int, height: int, scheme: Any
) -> None:
    with visit(browser, console.url, width=width, height=height, scheme=scheme) as page:
        opened(page, console)
        start = page.get_by_role("button", name="Start training")
        expect(start).to_be_in_viewport(ratio=1)
        tab_to(page, "FLUX LoRA")
        for label in ("Base model", "Choose images", "Trigger word", "Sample prompts"):
            tab_to(page, label)
            assert not page.evaluate(_IS_COVERED), label
        tab_to(page, "Advanced options")
        page.keyboard.press("Enter")
        page.get_by_label("Find an option").wait_for()
        tab_to(page, "Memory and speed")
        page.keyboard.press("Enter")
        page.get_by_role("switch", name="Compile the model").wait_for()
        tab_to(page, "Compile the model")
        assert not page.evaluate(_IS_COVERED)
        page.keyboard.press("Space")
        expect(page.get_by_role("switch", name="Compile the model")).to_be_checked()
        for section in page.locator(".options-group > summary").all():
            if "Memory and speed" not in section.inner_text():
                section.click()
        field(page, "Folder of the results").wait_for()
        assert violations(page) == []
        assert not is_wider_than_its_screen(page)
        tab_to(page, "Start training")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="1 problem to fix")).to_be_visible()


_IS_COVERED = """() => {
  const box = document.activeElement.getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return top === null || top.closest('.start-bar, .topbar') !== null;
}"""
