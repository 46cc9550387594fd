import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from redis import Redis

from tasks.captions.runs import CaptionRun, CaptionRuns
from tasks.client import Client
from tasks.data.uploads import StoredUploads
from tasks.store import Store
from tests.waiting import wait_until
from tests.worker.cli.conftest import Invoke


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat.png", "dog.png", "old.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    (folder / "old.txt").write_text("an old caption", "utf-8")
    return folder


@contextmanager
def captioned_by_a_worker(
    client: Redis, home: Path, *, error: str | None = None
) -> Iterator[list[CaptionRun]]:
    """Carry out the next run in a thread, as a worker does: each image's caption is its name."""
    runs, seen = CaptionRuns(client), list[CaptionRun]()

    def work() -> None:
        wait_until(lambda: client.llen("gpu.8gb") == 1, timeout_s=20, description="a run is sent")
        message = json.loads(str(client.rpop("gpu.8gb")))
        run = runs.get(message["headers"]["id"])
        assert run is not None
        seen.append(run)
        uploads = StoredUploads(Store((home / "store").as_uri()), run.request.tenant)
        assert uploads.get(run.request.upload) is not None
        runs.begin(run)
        if error is None:
            runs.advance(run, 1, 2, {"cat.png": "a cat"})
            runs.finish(run)
        else:
            runs.fail(run, error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        thread.join()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "unserved_reason", lambda *_: None)


def test_missing_caption_files_are_written(
    invoke: Invoke,
    images: Path,
    redis_client: Redis,
    broker_url: str,
    tmp_path: Path,
    served: None,
) -> None:
    with captioned_by_a_worker(redis_client, tmp_path / "home") as seen:
        printed = invoke(
            "caption",
            str(images),
            "--short",
            "--tenant",
            "acme",
            "--json",
            code=4,  # one image has no caption still
            TRAINING_BROKER_URL=broker_url,
            TRAINING_CAPTION_MODEL="org/model",
        )
    answer = json.loads(printed.splitlines()[-1])
    assert answer == {"written": ["cat.txt"], "kept": 1, "without": ["dog.png"]}
    assert (images / "cat.txt").read_text("utf-8") == "a cat\n"
    assert (images / "old.txt").read_text("utf-8") == "an old caption"
    [run] = seen
    assert (run.request.tenant, run.request.style) == ("acme", "short")
    # Nothing of it stays in the fleet.
    assert StoredUploads(Store((tmp_path / "home" / "store").as_uri()), "acme").ids() == []
    assert CaptionRuns(redis_client).get(run.id) is None


def test_run_that_fails_is_reported(
    invoke: Invoke,
    images: Path,
    redis_client: Redis,
    broker_url: str,
    tmp_path: Path,
    served: None,
) -> None:
    with captioned_by_a_worker(redis_client, tmp_path / "home", error="it is damaged"):
        printed = invoke(
            "caption",
            str(images),
            "--json",
            code=9,
            TRAINING_BROKER_URL=broker_url,
            TRAINING_CAPTION_MODEL="org/model",
        )
    assert json.loads(printed.splitlines()[-1])["error"]["message"] == "it is damaged"
    assert not (images / "cat.txt").exists()


def test_what_cannot_begin_is_refused(
    invoke: Invoke, images: Path, broker_url: str, tmp_path: Path
) -> None:
    def refused(folder: Path, code: int, **settings: str) -> str:
        printed = invoke(
            "caption", str(folder), "--json", code=code, TRAINING_BROKER_URL=broker_url, **settings
        )
        message: str = json.loads(printed)["error"]["message"]
        return message

    assert "set TRAINING_CAPTION_MODEL" in refused(images, 2)
    model = {"TRAINING_CAPTION_MODEL": "org/model"}
    assert "is not a folder" in refused(images / "none", 2, **model)
    (tmp_path / "empty").mkdir()
    assert "has no image at its top" in refused(tmp_path / "empty", 2, **model)
    assert "gpu.8gb" in refused(images, 7, **model)
