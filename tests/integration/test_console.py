import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect
from safetensors import safe_open

from tasks.state.connection import connect
from tests.integration.browsers import chromium, field, log_in, visit
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet, free_port
from tests.waiting import wait_until

TUS = {"Tus-Resumable": "1.0.0"}
PATIENCE_MS = 1000 * PATIENCE_S


@pytest.fixture(scope="module")
def console(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, caption_model: Path
) -> Iterator["Served"]:
    port, home = free_port(), tmp_path_factory.mktemp("console-fleet")
    settings = {
        "TRAINING_CONSOLE_PORT": str(port),
        "TRAINING_TENANT_ROOTS": str(tiny_model.parent),
        "TRAINING_CAPTION_MODEL": str(caption_model),
        "TRAINING_CAPTION_MAX_TOKENS": "8",
        # The tests poll far more often than people do, and longer on a busy CPU.
        "TRAINING_API_RATE_LIMIT": "100000",
    }
    with Fleet(home, "40gb", **settings) as fleet:
        url = f"http://127.0.0.1:{port}"
        assert f"console: {url} (key in {home}/console-key)" in fleet.log()
        wait_until(
            lambda: is_served(url),
            timeout_s=PATIENCE_S,
            description="the console is served",
            detail=fleet.log,
        )
        keys = {
            name: fleet.run("keys", "create", name, "--tenant", name).out.strip()
            for name in ("acme", "zoo")
        }
        yield Served(fleet, url, keys | {"operator": (home / "console-key").read_text().strip()})
        assert not any(key in fleet.log() for key in keys.values())


class Served:
    """A fleet with a console, and keys to it."""

    def __init__(self, fleet: Fleet, url: str, keys: dict[str, str]) -> None:
        self.fleet, self.url, self.keys = fleet, url, keys

    def client(self, who: str) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        return httpx2.Client(base_url=f"{self.url}/v1", headers=headers, timeout=PATIENCE_S)


def is_served(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/v1/health").status_code == 200
    except httpx2.TransportError:
        return False


def uploaded_in_pieces(client: httpx2.Client, data: bytes) -> str:
    """Upload by tus, with an interrupted connection, and return the id."""
    created = client.post("/uploads", headers={**TUS, "Upload-Length": str(len(data))})
    path = created.headers["location"].removeprefix("/v1")

    def send(offset: int, content: Any) -> httpx2.Response:
        kind = {"Content-Type": "application/offset+octet-stream"}
        headers = {**TUS, **kind, "Upload-Offset": str(offset)}
        return client.patch(path, content=content, headers=headers)

    def interrupted() -> Iterator[bytes]:
        yield data[:1000]
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError):
        send(0, interrupted())

    def offset() -> int:
        return int(client.head(path, headers=TUS).headers["upload-offset"])

    def is_sent() -> bool:
        start = offset()
        return send(start, data[start : start + len(data) // 3 + 1]).status_code == 204

    while offset() < len(data):
        # While the server has not noticed the break, a piece is refused.
        wait_until(is_sent, timeout_s=PATIENCE_S, description="a piece is taken")
    return str(path.rpartition("/")[2])


def job_of(tiny_model: Path, upload_id: str) -> dict[str, Any]:
    job = short_job(tiny_model, Path("/unused"))
    dataset = {"type": "ARCHIVE", "archive": f"upload:{upload_id}"}
    job["training"]["data_loader"]["dataset"] = dataset
    job["training"] |= {
        "validation_prompts": ["a shape"],
        "num_validation_images_per_prompt": 1,
        "validate_every_n_steps": 12,
    }
    return job


def archive_of(images: Path, broken: bool) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(images.iterdir()):
            archive.write(path, path.name)
        if broken:
            archive.writestr("torn.png", b"\x89PNG torn")
            archive.writestr("torn.txt", "a torn image")
    return buffer.getvalue()


def test_a_job_by_http_from_upload_to_file(console: Served, tiny_model: Path, images: Path) -> None:
    with console.client("acme") as acme:
        broken = uploaded_in_pieces(acme, archive_of(images, broken=True))
        found = acme.post("/jobs:preview", json=job_of(tiny_model, broken)).json()
        errors = [
            finding for finding in found["dataset"]["findings"] if finding["severity"] == "error"
        ]
        assert [finding["file"] for finding in errors] == ["torn.png"]
        assert found["error"]["code"] == "invalid_dataset"

        whole = uploaded_in_pieces(acme, archive_of(images, broken=False))
        found = acme.post("/jobs:preview", json=job_of(tiny_model, whole)).json()
        assert (found["error"], found["waiting_reason"]) == (None, None)

        submitted = acme.post("/jobs", json=job_of(tiny_model, whole))
        assert submitted.status_code == 201, submitted.text
        job_id = submitted.json()["id"]
        events = list(events_of(acme, job_id))
        assert events[-1]["status"] == "succeeded", events[-1]
        assert [event["stage"] for event in events if event["kind"] == "stage_finished"] == [
            "prepare",
            "cache",
            "train",
            "publish",
        ]

        listed = acme.get(f"/jobs/{job_id}/files").json()
        file = listed["files"][0]
        assert file["name"] == "shapes.safetensors"
        published = listed["manifest"]["files"][0]
        assert file == {k: published[k] for k in ("name", "size", "sha256")} | {"step": 12}
        parts = [
            acme.get(f"/jobs/{job_id}/files/{file['name']}", headers={"Range": f"bytes={part}"})
            for part in ("0-99", "100-4999", "5000-")
        ]
        assert [part.status_code for part in parts] == [206] * 3
        assert (
            hashlib.sha256(b"".join(part.content for part in parts)).hexdigest() == file["sha256"]
        )

        [sample] = acme.get(f"/jobs/{job_id}/samples").json()
        assert sample["prompt"] == "a shape"
        image = acme.get(f"/jobs/{job_id}/samples/{sample['name']}").content
        assert image.startswith(b"\x89PNG")

        view = acme.get(f"/jobs/{job_id}").json()
        assert (view["status"], view["tenant"]) == ("succeeded", "acme")
        assert str(console.fleet.home) not in json.dumps(view)
    with console.client("zoo") as zoo:
        assert zoo.get(f"/jobs/{job_id}").status_code == 404
        assert zoo.get(f"/jobs/{job_id}/files/shapes.safetensors").status_code == 404
        stolen = zoo.post("/jobs", json=job_of(tiny_model, whole)).json()["id"]
        last = list(events_of(zoo, stolen))[-1]
        assert last["status"] == "failed"
        assert "no such upload" in last["message"]


def events_of(client: httpx2.Client, job_id: str) -> Iterator[dict[str, Any]]:
    with client.stream("GET", f"/jobs/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_a_model_writes_the_captions_of_an_upload(console: Served, images: Path) -> None:
    with console.client("acme") as acme:
        upload_id = uploaded_in_pieces(acme, archive_of(images, broken=True))
        names = sorted(path.name for path in images.glob("*.png"))[:3]

        def finished(**request: Any) -> dict[str, Any]:
            started = acme.post("/captions", json={"upload": upload_id, **request})
            assert started.status_code == 202, started.text
            path = f"/captions/{started.json()['id']}"
            wait_until(
                lambda: acme.get(path).json()["state"] in ("done", "failed"),
                timeout_s=PATIENCE_S,
                description="the captions are written",
                detail=console.fleet.log,
            )
            run: dict[str, Any] = acme.get(path).json()
            assert acme.delete(path).status_code == 204
            return run

        def written() -> dict[Path, int]:
            store = console.fleet.home / "store" / "captions"
            return {path: path.stat().st_mtime_ns for path in store.rglob("*.txt")}

        run = finished(files=[*names, "torn.png"])
        assert (run["state"], run["done"], run["total"], run["error"]) == ("done", 3, 3, None)
        assert sorted(run["captions"]) == names
        assert all(run["captions"].values())
        stored = written()
        assert len(stored) >= len(names)
        # Nothing is written twice: the same words, from the store.
        again = finished(files=names)
        assert again["captions"] == run["captions"]
        assert written() == stored
    with connect(console.fleet.broker_url) as broker:
        for ended in (run, again):
            assert not broker.keys(f"training:captions:*{ended['id']}*")


def test_a_person_trains_on_captions_that_a_model_wrote(
    console: Served, tiny_model: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    draw_uncaptioned(photos, 15)
    with chromium() as browser, visit(browser, console.url) as page:
        log_in(page, console.keys["acme"])
        page.get_by_role("link", name="New job").first.click()
        page.get_by_role("heading", level=1, name="New job").wait_for()
        for label, text in (
            ("Name", "my-shapes"), ("Base model", str(tiny_model)), ("Trigger word", "ohwx"),
            ("Resolution", "64"), ("Steps", "4"), ("Sample prompts", "a red disc"),
        ):  # fmt: skip
            field(page, label).fill(text)

        # The model writes captions; the person changes one, and adds what a tiny model leaves out.
        page.locator("input[type=file]").set_input_files(sorted(photos.iterdir()))
        expect(page.get_by_text("15 images have no caption.")).to_be_visible(timeout=PATIENCE_MS)
        page.get_by_role("button", name="Write captions for 15 images").click()
        ended = page.get_by_text(re.compile(r"^Wrote \d+ captions\."))
        expect(ended).to_be_visible(timeout=PATIENCE_MS)
        captions = [page.get_by_label(f"Caption of {n:02d}.png") for n in range(1, 16)]
        lacking = [caption for caption in captions if not caption.input_value()]
        assert f"Wrote {15 - len(lacking)} captions." in ended.inner_text()
        assert len(lacking) < 10
        edited = {captions[0], *lacking}
        for caption in edited:
            caption.fill("a disc that a person described")
        page.get_by_role("button", name="Start training").click()
        page.wait_for_url("**/jobs/*", timeout=PATIENCE_MS)

        sample = page.get_by_role("img", name=re.compile("a red disc, at step")).first
        expect(sample).to_be_visible(timeout=PATIENCE_MS)
        assert sample.evaluate("it => it.decode().then(() => it.naturalWidth)") == 64
        file = downloaded(page, "my-shapes.safetensors", tmp_path)
        about = json.loads(downloaded(page, "my-shapes.json", tmp_path).read_text("utf-8"))

    # The file and its description have the trigger word, and so has each caption.
    assert "ohwx" in json.dumps(about)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert header["modelspec.trigger_phrase"] == "ohwx"
    [tags] = json.loads(header["ss_tag_frequency"]).values()
    assert tags["ohwx"] == 15
    assert tags["a disc that a person described"] == len(edited)


def draw_uncaptioned(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(1, count + 1):
        image = Image.new("RGB", (96, 96), (17 * number, 255 - 17 * number, 90))
        left = 4 * number
        ImageDraw.Draw(image).ellipse((left, 8, left + 5 + 2 * number, 60), fill="crimson")
        image.save(folder / f"{number:02d}.png")


def downloaded(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download(timeout=PATIENCE_MS) as download:
        page.get_by_role("link", name=f"Download {name}", exact=True).click()
    path = folder / name
    download.value.save_as(path)
    return path


def test_the_cli_checks_an_upload(console: Served, tiny_model: Path, images: Path) -> None:
    with console.client("acme") as acme:
        upload_id = uploaded_in_pieces(acme, archive_of(images, broken=False))
    job = {**job_of(tiny_model, upload_id), "tenant": "acme"}
    checked = console.fleet.submit(job, "--dry-run")
    assert checked.code == 0, checked
    refused = console.fleet.submit({**job, "tenant": "zoo"}, "--dry-run")
    assert refused.code == 4
    assert "no such upload" in refused.out


def test_keys_are_listed_without_secrets_and_revoked_at_once(console: Served) -> None:
    fleet = console.fleet
    listed = json.loads(fleet.run("keys", "list", "--json").out)
    assert {(key["name"], key["tenant"]) for key in listed} >= {("console", None), ("acme", "acme")}
    assert not re.search(r"twk_|[0-9a-f]{64}", json.dumps(listed))
    added = fleet.run("keys", "create", "short", "--operator", "--json").documents[0]
    headers = {"Authorization": f"Bearer {added['key']}"}
    assert httpx2.get(f"{console.url}/v1/fleet", headers=headers).status_code == 200
    assert fleet.run("keys", "revoke", "short").code == 0
    assert httpx2.get(f"{console.url}/v1/fleet", headers=headers).status_code == 401
    assert fleet.run("keys", "create", "both").code == 2
    assert fleet.run("keys", "revoke", "unknown").code == 18


def test_the_fleet_shows_its_gpu_and_recommends_presets(console: Served) -> None:
    with console.client("operator") as operator:
        workers = operator.get("/fleet").json()["workers"]
        assert [worker["memory_class"] for worker in workers if worker["gpu"]] == ["40gb"]
        best = {
            preset["name"] for preset in operator.get("/presets").json() if preset["recommended"]
        }
    assert best == {
        "flux_lora_1x40gb",
        "sdxl_finetune_1x40gb",
        "sdxl_lora_1x24gb",
        "sdxl_textual_inversion_1x16gb",
    }
