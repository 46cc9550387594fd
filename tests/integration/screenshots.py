"""Take the screenshots of the console: ``python -m tests.integration.screenshots``.

A whole fleet is emulated on the CPU, and trains the demo's LoRA; nothing in the images is drawn by
hand.
"""

import io
import re
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from tasks.state.record import JobStatus
from tests.integration.browsers import chromium, field, log_in, visit
from tests.integration.fleets import PATIENCE_S, Fleet, free_port
from tests.waiting import wait_until
from worker.local.demo import prepare_demo
from worker.miniature.images import FLUX_FOLDER

IMAGES = Path("docs/images")
_PHONE = {"width": 390, "height": 844}
_STEPS_SHOWN = 220


def main() -> None:
    """Take all screenshots."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        scratch = Path(folder)
        document = prepare_demo(scratch / "demo")
        settings = {"TRAINING_CONSOLE_PORT": str(free_port()), "TRAINING_GPU_PRICES": "40gb=1.8"}
        with Fleet(scratch / "home", "40gb,40gb,24gb", **settings) as fleet:
            _make(browser, fleet, document, scratch / "demo" / "images")


def _make(browser: Browser, fleet: Fleet, document: dict[str, Any], images: Path) -> None:
    key = (fleet.home / "console-key").read_text("utf-8").strip()
    job = document | {"name": "zorp"}
    finished_id = fleet.submit(job | {"name": "zorp-draft"}).documents[0]["job_id"]
    wait_until(
        lambda: fleet.record(finished_id).status is JobStatus.SUCCEEDED,
        timeout_s=8 * PATIENCE_S,
        description="a finished job",
    )
    job["training"] |= {"max_train_steps": 1000, "save_every_n_steps": 250}
    job_id = fleet.submit(job).documents[0]["job_id"]
    with visit(browser, fleet.console) as page:
        log_in(page, key)
        page.goto(f"/jobs/{job_id}")
        wait_until(
            lambda: _step(page) >= _STEPS_SHOWN, timeout_s=8 * PATIENCE_S, description="a curve"
        )
        _save(page, "job")
        page.goto("/jobs")
        page.locator("tbody img:visible").first.wait_for()
        _save(page, "jobs", height=480)
        page.goto(f"/compare?job={finished_id}&job={job_id}")
        page.locator(".chart svg").first.wait_for()
        _save(page, "compare", height=1000)
        page.goto("/fleet")
        page.get_by_role("article").first.wait_for()
        _save(page, "fleet", height=760)
        _fill_in(page)
        _save(page, "new-job", height=1180)
        _add_images(page, images)
        _save_part(page.get_by_role("region", name="Images"), "report")
    with visit(browser, fleet.console, scheme="dark") as page:
        log_in(page, key)
        page.goto(f"/jobs/{job_id}")
        page.locator(".chart svg").first.wait_for()
        _save(page, "job-dark")
        _fill_in(page)
        _save(page, "new-job-dark", height=1180)
    with visit(browser, fleet.console, **_PHONE) as page:  # type: ignore[arg-type]
        log_in(page, key)
        page.goto(f"/jobs/{job_id}")
        page.locator(".chart svg").first.wait_for()
        _save(page, "job-phone", height=1000)
        _fill_in(page)
        _save(page, "new-job-phone", height=1000)
    assert fleet.run("cancel", job_id).code == 0


def _fill_in(page: Page) -> None:
    page.goto("/new")
    page.locator(".legend").wait_for()
    field(page, "Name").fill("my-cat")
    field(page, "Resolution").fill("512")
    field(page, "LoRA rank").fill("16")
    page.get_by_text("FLUX works best from 768 px up").wait_for()
    page.get_by_role("heading", level=1).click()


def _add_images(page: Page, images: Path) -> None:
    for path in images.iterdir():
        if path.stem > "09":
            path.unlink()
    (images / "09.png").write_bytes((images / "01.png").read_bytes()[:200])
    (images / "09.txt").write_text("a truncated image", "utf-8")
    for name in ("03.txt", *(f"0{number}.{end}" for number in (6, 7, 8) for end in ("png", "txt"))):
        (images / name).unlink()
    field(page, "Base model").fill(str(FLUX_FOLDER))
    field(page, "Resolution").fill("192")
    page.get_by_role("heading", level=1).click()
    page.get_by_text("FLUX works best from 768 px up").wait_for()
    page.locator("input[type=file]").first.set_input_files(sorted(images.iterdir()))
    page.get_by_role("table", name="Problems of the images").wait_for()
    page.locator(".thumb-image").nth(4).wait_for()
    for image in page.locator("img:visible").all():
        image.scroll_into_view_if_needed()
        image.evaluate("it => it.decode()")


def _step(page: Page) -> int:
    found = re.search(r"at step ([\d,]+)", page.get_by_role("region", name="Loss").inner_text())
    return int(found.group(1).replace(",", "")) if found else 0


def _save(page: Page, name: str, height: int = 900) -> None:
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})  # type: ignore[index]
    page.evaluate("scrollTo(0, 0)")
    page.evaluate("document.fonts.ready")
    page.evaluate("new Promise(done => setTimeout(done, 400))")
    _write(page.screenshot(), name)


def _save_part(part: Locator, name: str) -> None:
    # The bar would lie over it.
    part.page.add_style_tag(content=".topbar, .start-bar { position: static !important; }")
    part.page.evaluate("scrollTo(0, 0)")
    _write(part.screenshot(), name, colours=0)


def _write(data: bytes, name: str, colours: int = 256) -> None:
    """Write an image with a palette, which is enough for a page and a third of the size."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if colours:
        image = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
