"""The images of the form, in a real browser: nothing that a user added or typed is lost."""

import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from console.services.images.image_collection import ImageCollection
from tasks.settings.settings import Settings
from tests.console.conftest import Console, image, job, upload, zipped
from tests.integration.browsers import log_in, visit
from tests.waiting import wait_until

expect.set_options(timeout=60_000)
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def page(browser: Browser, console: Console) -> Iterator[Page]:
    with visit(browser, console.url) as opened:
        log_in(opened, console.keys["acme"])
        opened.goto("/new")
        yield opened


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def choose(page: Page, files: list[Path]) -> None:
    page.locator("input[type=file]").set_input_files(files)


def drop(page: Page, path: Path) -> None:
    """Drop a file or folder of this machine on the form, as from its file manager."""
    page.locator(".drop").scroll_into_view_if_needed()
    box = page.locator(".drop").bounding_box()
    assert box is not None
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        position = {"x": box["x"] + 20, "y": box["y"] + 20}
        devtools.send("Input.dispatchDragEvent", {"type": kind, **position, "data": data})


def caption(page: Page, name: str) -> str:
    return page.get_by_label(f"Caption of {name}", exact=True).input_value()


def test_an_archive_beside_loose_images_adds_to_them(page: Page, tmp_path: Path) -> None:
    choose(page, write(tmp_path, {"cat.png": image(size=(512, 512))}))
    page.get_by_label("Caption of cat.png").fill("typed in the browser")
    page.get_by_label("Caption of cat.png").blur()
    rows = b'{"file_name": "img/dog.png", "text": "a dog"}\n'
    archive = zipped({
        "img/dog.png": image("blue", (512, 512)), "metadata.jsonl": rows,
        "owl.png": image("green", (512, 512)), "owl.txt": b"an owl", "notes.pdf": b"%PDF",
    })  # fmt: skip
    choose(page, write(tmp_path, {"more.zip": archive}))
    expect(page.get_by_text("3 valid images")).to_be_visible()
    assert caption(page, "cat.png") == "typed in the browser"
    assert (caption(page, "dog.png"), caption(page, "owl.png")) == ("a dog", "an owl")
    expect(page.get_by_text("more.zip: notes.pdf: is a PDF, which is not read")).to_be_visible()
    # Each of them can be edited and removed, and its thumbnail is shown.
    thumbnail = page.get_by_role("img", name="a dog")
    assert thumbnail.evaluate("it => it.decode().then(() => it.naturalWidth)") == 256
    page.get_by_label("Caption of dog.png").fill("")
    page.get_by_label("Caption of dog.png").blur()
    expect(page.get_by_text("2 valid images, 1 without a caption")).to_be_visible()
    page.get_by_label("Caption of dog.png").fill("a blue dog")
    expect(page.get_by_text("3 valid images")).to_be_visible()
    page.get_by_role("button", name="Remove dog.png").last.click()
    expect(page.get_by_text("2 valid images")).to_be_visible()


def test_a_dropped_folder_adds_all_its_images(
    page: Page, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "my cats"
    write(folder, {
        "a/cat.png": image("red", (512, 512)), "a/cat.txt": b"cat of a",
        "b/cat.png": image("blue", (512, 512)), "b/cat.txt": b"cat of b",
        ".DS_Store": b"x", "a/movie.mp4": b"x",
    })  # fmt: skip
    owl = {"owl.png": image("green", (512, 512)), "owl.txt": b"an owl"}
    [archive] = write(tmp_path, {"owl.zip": zipped(owl)})
    uploads = re.compile("/upload/")
    held: list[Route] = []
    page.route(uploads, lambda route: held.append(route), times=1)
    with page.expect_request(uploads):
        drop(page, folder)
    # While the folder is sent.
    drop(page, archive)
    held[0].continue_()
    expect(page.get_by_text("3 valid images")).to_be_visible()
    assert {caption(page, name) for name in ("cat.png", "cat-2.png")} == {"cat of a", "cat of b"}
    expect(page.get_by_text("Not added: movie.mp4 is a video, which is not read")).to_be_visible()
    expect(page.get_by_text("DS_Store")).to_have_count(0)
    assert not [it for it in caplog.records if it.levelno >= logging.ERROR or it.exc_info]
    # A folder can be chosen too.
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    write(folder, {"dog.png": image("white", (512, 512)), "dog.txt": b"a dog"})
    chooser.value.set_files(folder)
    expect(page.get_by_text("4 valid images")).to_be_visible()
    expect(page.get_by_text("cat.png is the same image as cat.png")).to_be_visible()


def test_a_form_that_was_left_is_offered_again(page: Page, tmp_path: Path) -> None:
    choose(page, write(tmp_path, {"cat.png": image(size=(512, 512)), "cat.txt": b"a cat"}))
    expect(page.get_by_text("1 valid image")).to_be_visible()
    page.get_by_role("textbox", name="Name", exact=True).fill("my-cat")
    page.get_by_role("link", name="Jobs", exact=True).click()
    page.get_by_role("heading", level=1, name="Jobs").wait_for()
    page.get_by_role("link", name="New job").first.click()
    offered = page.get_by_role("region", name="Continue your draft")
    expect(offered).to_contain_text("my-cat, FLUX LoRA, 1 image")
    offered.get_by_role("link", name="Continue my-cat").click()
    expect(page.get_by_label("Caption of cat.png")).to_have_value("a cat")
    expect(page.get_by_role("textbox", name="Name", exact=True)).to_have_value("my-cat")
    page.goto("/new")
    page.get_by_role("button", name="Discard my-cat").click()
    expect(page.get_by_role("button", name="Discard my-cat")).to_have_count(0)
    page.goto("/new")
    expect(page.get_by_role("button", name="Discard my-cat")).to_have_count(0)


def test_run_again_shows_images_that_can_be_edited(
    page: Page, console: Console, tmp_path: Path
) -> None:
    files = {"cat.png": image(size=(512, 512)), "cat.txt": b"a cat"}
    with console.client("acme") as client:
        archive = f"upload:{upload(client, zipped(files))}"
        dataset = {"type": "ARCHIVE", "archive": archive}
        document = job(name="cats", training={"data_loader": {"dataset": dataset}})
        job_id = client.post("/jobs", json=document).json()["id"]
    page.goto(f"/new?again={job_id}")
    page.get_by_label("Caption of cat.png").fill("a red cat")
    page.get_by_label("Caption of cat.png").blur()
    expect(page.get_by_text("1 valid image")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile(rf"/jobs/(?!{job_id})"))
    new = console.state.get(page.url.rpartition("/")[2]).job
    source = new.training.loader.sources()[0]
    assert source.archive.startswith("upload:")  # type: ignore[attr-defined]  # an archive
    assert source.archive != archive  # type: ignore[attr-defined]
    with console.client("acme") as client:
        upload_id = source.archive.partition(":")[2]  # type: ignore[attr-defined]
        [shown] = client.get(f"/uploads/{upload_id}/images").json()
    assert (shown["name"], shown["caption"]) == ("cat.png", "a red cat")


def test_missing_captions_are_one_remedy(page: Page, tmp_path: Path) -> None:
    files = {f"{color}.png": image(color, (512, 512)) for color in ("red", "green", "blue")}
    choose(page, write(tmp_path, {**files, "red.txt": b"a red cat"}))
    expect(page.get_by_text("2 images have no caption.")).to_be_visible()
    expect(page.get_by_role("table", name="Problems of the images")).not_to_contain_text(
        "no caption"
    )
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_text("has 2 images without a caption").first).to_be_visible()
    page.get_by_label("Caption for all of them").fill("a cat")
    page.get_by_role("button", name="Use it for 2 images").click()
    expect(page.get_by_text("3 valid images")).to_be_visible()
    assert caption(page, "green.png") == "a cat"
    # All captions change at once, after a preview of how many; the change can be undone.
    page.get_by_text("Change all captions").click()
    page.get_by_label("Find").fill("red")
    expect(page.get_by_text("Changes 1 of 3 captions.")).to_be_visible()
    page.get_by_label("Put before each caption").fill("ohwx,")
    expect(page.get_by_text("Changes 3 of 3 captions.")).to_be_visible()
    page.get_by_label("Replace with").fill("white")
    page.get_by_role("button", name="Change captions").click()
    expect(page.get_by_label("Caption of red.png")).to_have_value("ohwx, a white cat")
    expect(page.get_by_label("Caption of blue.png")).to_have_value("ohwx, a cat")
    page.get_by_role("button", name="Undo the last change").click()
    expect(page.get_by_label("Caption of red.png")).to_have_value("a red cat")
    expect(page.get_by_label("Caption of blue.png")).to_have_value("a cat")


def test_a_dataset_is_saved_edited_and_used(
    page: Page, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(page, write(tmp_path, {"cat.png": image(size=(768, 768)), "cat.txt": b"a cat"}))
    expect(page.get_by_text("1 valid image")).to_be_visible()
    page.locator("summary", has_text="Save as dataset").click()
    page.get_by_label("Name of the dataset").fill("my cats")
    # A double click saves one dataset.
    page.get_by_role("button", name="Save as dataset").dblclick()
    expect(page.get_by_text("Saved 1 image as my cats.")).to_be_visible()
    page.get_by_role("link", name="Datasets", exact=True).click()
    page.get_by_role("link", name="my cats", exact=True).click()
    page.get_by_label("Caption of cat.png").fill("a red cat")
    page.get_by_label("Caption of cat.png").blur()
    choose(page, write(tmp_path, {"dog.png": image("blue", (768, 768)), "dog.txt": b"a dog"}))
    expect(page.get_by_text("2 valid images")).to_be_visible()
    page.get_by_label("Name of the dataset").fill("my pets")
    page.get_by_label("Name of the dataset").blur()
    # What was typed last is saved, however slow the disk is.
    write_caption = ImageCollection.write_caption

    def write_slowly(*arguments: Any) -> bool:
        threading.Event().wait(0.5)
        return write_caption(*arguments)

    monkeypatch.setattr(ImageCollection, "write_caption", write_slowly)
    page.get_by_label("Caption of dog.png").fill("a blue dog")
    page.get_by_role("button", name="Save dataset").click()
    expect(page.get_by_role("row", name="my pets")).to_contain_text("2 images")
    with console.client("acme") as client:
        [saved] = client.get("/datasets").json()
        found = client.get(f"/datasets/{saved['id']}").json()
    assert {it["name"]: it["caption"] for it in found["contents"]} == {
        "cat.png": "a red cat",
        "dog.png": "a blue dog",
    }
    page.get_by_role("link", name="Use in a new job: my pets").click()
    expect(page.get_by_label("Source", exact=True)).to_have_value("saved")
    expect(page.get_by_text("2 valid images")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile("/jobs/"))
    new = console.state.get(page.url.rpartition("/")[2]).job
    [source] = new.training.loader.sources()
    assert source.archive == f"upload:{saved['upload']}"  # type: ignore[attr-defined]  # an archive
    page.get_by_role("link", name="Datasets", exact=True).click()
    page.get_by_role("button", name="Delete my pets").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("No datasets yet.")).to_be_visible()


def test_a_model_writes_missing_captions(
    page: Page, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(caption_model="org/model", caption_class="24gb")
    monkeypatch.setattr(console.services.captioning, "_settings", settings)
    files = {f"{color}.png": image(color, (512, 512)) for color in ("red", "blue")}
    choose(page, write(tmp_path, {**files, "red.txt": b"a red cat"}))
    page.get_by_role("button", name="Write captions for 1 image").click()
    runs = console.services.client.captions
    wait_until(
        lambda: console.redis.llen("gpu.24gb") > 0, timeout_s=60, description="the run is sent"
    )
    [message] = console.redis.lrange("gpu.24gb", 0, -1)
    run = runs.get(json.loads(message)["headers"]["id"])
    assert run is not None
    assert run.request.files == ("blue.png",)
    # As a worker does.
    assert runs.begin(run)
    runs.advance(run, 1, 1, {"blue.png": "a blue square"})
    runs.finish(run)
    expect(page.get_by_text("Wrote 1 caption.")).to_be_visible()
    expect(page.get_by_label("Caption of blue.png")).to_have_value("a blue square")
    assert caption(page, "red.png") == "a red cat"
    assert console.services.uploads._store.all("acme") == []
    page.get_by_role("button", name="Undo the last change").click()
    expect(page.get_by_label("Caption of blue.png")).to_have_value("")
