import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import pytest

from console.services.images import processes as checks
from routing.classes import MemoryClass
from tasks.eta.history import RunHistoryStore, WorkDone
from tasks.stages.submit import submit
from tasks.state.record import StageRecord
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.console.conftest import Console, image, job, upload, zipped


def preview(client: httpx2.Client, document: dict[str, Any], **params: Any) -> dict[str, Any]:
    answer = client.post("/jobs:preview", json=document, params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def of_upload(upload_id: str, **training: Any) -> dict[str, Any]:
    dataset = {"type": "ARCHIVE", "archive": f"upload:{upload_id}"}
    return job(training={"data_loader": {"dataset": dataset}, **training})


@pytest.mark.parametrize("path", ["/jobs", "/jobs:preview"])
def test_a_key_twice_is_refused(acme: httpx2.Client, path: str) -> None:
    content = '{"preset": "sdxl_lora_1x24gb", "training": {"seed": 1, "seed": 2}}'
    answer = acme.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "has the key 'seed' more than once" in answer.json()["detail"]


def test_a_preview_names_broken_images_and_submits_nothing(acme: httpx2.Client) -> None:
    files = {
        "good.png": image(size=(800, 800)),
        "good.txt": b"a good one",
        "broken.png": image()[:80],
        "broken.txt": b"a broken one",
        "bare.png": image("blue"),
    }
    upload_id = upload(acme, zipped(files))
    found = preview(acme, of_upload(upload_id))
    errors = {it["file"] for it in found["dataset"]["findings"] if it["severity"] == "error"}
    assert errors == {"broken.png", "bare.png"}
    assert found["dataset"]["images"] == 1
    assert found["dataset"]["buckets"] == {"768x768": 1}
    # The base model is missing here too; the preview reports both.
    assert found["error"]["code"] == "invalid_model"
    assert acme.get("/jobs").json()["jobs"] == []
    acme.delete(f"/uploads/{upload_id}")


def test_a_preview_warns_of_unlikely_options(acme: httpx2.Client) -> None:
    buckets = {"target_resolution": 512, "start_dim": 256, "end_dim": 1024, "divisible_by": 64}
    loader = {
        **job()["training"]["data_loader"],
        "resolution": 512,
        "aspect_ratio_buckets": buckets,
    }
    small = job(training={"data_loader": loader, "train_batch_size": 3})
    warnings = " ".join(preview(acme, small, check_dataset=False)["warnings"])
    assert "768 px" in warnings
    assert "above 2" in warnings


def test_a_preview_has_memory_class_and_waiting_reason(acme: httpx2.Client) -> None:
    found = preview(acme, job(), check_dataset=False)
    route = found["route"]
    assert route["memory_class"] == "40gb"
    assert sum(route["parts_gib"].values()) == pytest.approx(route["needed_gib"], abs=0.05)
    assert "no live worker serves gpu.40gb" in found["waiting_reason"]
    assert found["dataset"] is None
    assert found["error"] is None
    assert found["job"]["training"]["lora_rank_dim"] == 4
    assert found["estimate"]["unknown"]
    price = {"amount": None, "min_amount": 0.0, "per_hour": 1.8, "gpu_hours": None}
    price["currency"] = None
    assert found["price"] == price


def test_a_preview_marks_published_times_and_the_size_of_the_file(acme: httpx2.Client) -> None:
    found = preview(acme, job(), check_dataset=False)
    assert found["route"]["emulated"] is False
    train = found["estimate"]["stages"][2]
    assert train["basis"] == "published"
    assert "A40" in train["reference"]
    # A published time makes no price.
    assert found["price"]["min_amount"] == 0
    assert found["file_bytes"] == pytest.approx(65e6, rel=0.05)
    double = preview(acme, job(training={"lora_rank_dim": 8}), check_dataset=False)
    assert double["file_bytes"] == pytest.approx(2 * found["file_bytes"], rel=0.01)


def test_emulated_gpus_are_named_so(console: Console, acme: httpx2.Client) -> None:
    info = WorkerInfo(queues=("gpu.40gb",), memory_class=MemoryClass.GB40)
    WorkerHeartbeat(console.redis, "gpu", info, timedelta(minutes=5)).renew()
    found = preview(acme, job(), check_dataset=False)
    assert found["route"]["emulated"] is True
    assert found["estimate"]["stages"][2]["seconds"] is None
    [worker] = acme.get("/fleet").json()["workers"]
    assert worker["emulated"] is True
    presets = {it["name"]: it["emulated"] for it in acme.get("/presets").json()}
    assert presets["flux_lora_1x24gb"]  # which runs in the class of 40 GB
    assert not presets["flux_lora_1x80gb"]


def test_a_preview_estimates_time_and_price_from_history(
    console: Console, acme: httpx2.Client
) -> None:
    document = job(training={"max_train_steps": 7200, "cache_text_encoder_outputs": False})
    record_history(console, document)
    found = preview(acme, document, check_dataset=False)
    assert found["price"]["gpu_hours"] == pytest.approx(4.0)
    assert found["price"]["amount"] == pytest.approx(7.2)


def record_history(console: Console, document: dict[str, Any]) -> None:
    """Record that a job's training took two seconds a step."""
    job_id, trained, _ = submit(document, console.state, "result")
    durations = RunHistoryStore(
        console.redis, console.settings.job_ttl, trained.route().memory_class
    )
    done = StageRecord(queue="q", worker="w", attempt=9, started_at=0, seconds=20.0)
    durations.record_run(console.state.get(job_id), "train", done, WorkDone(10, 2.0))


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "https://intern.example/a"])
def test_a_tenants_preview_reads_only_permitted_places(acme: httpx2.Client, path: str) -> None:
    dataset = {"type": "ARCHIVE", "archive": path}
    answer = acme.post("/jobs:preview", json=job(training={"data_loader": {"dataset": dataset}}))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["location"] == "training.data_loader.dataset.archive"


def test_an_operators_preview_reads_this_machine(operator: httpx2.Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image())
    (tmp_path / "a.txt").write_text("a", "utf-8")
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(tmp_path)}
    found = preview(operator, job(training={"data_loader": {"dataset": dataset}}))
    assert found["dataset"]["images"] == 1


def test_a_check_that_hangs_or_crashes_is_reported(
    acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = upload(acme, zipped({"a.png": image(), "a.txt": b"a"}))
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.01)
    assert preview(acme, of_upload(upload_id))["error"]["message"] == (
        "reading the images takes too long: use fewer or smaller ones, or submit a job, whose "
        "worker has no such limit"
    )
    monkeypatch.setattr(checks, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr(checks, "TIMEOUT_S", 30.0)
    assert preview(acme, of_upload(upload_id))["error"]["message"] == (
        "the images cannot be read; the console's log has the reason"
    )
    acme.delete(f"/uploads/{upload_id}")


def test_a_tenant_cannot_block_the_checks_of_others(
    acme: httpx2.Client,
    zoo: httpx2.Client,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = f"import sys; sys.stdin.read(); open({str(gate)!r}).read(); raise SystemExit(3)"
    monkeypatch.setattr(checks, "COMMAND", (sys.executable, "-c", program))

    def ask(client: httpx2.Client) -> int:
        return client.post("/jobs:preview", json=job()).status_code

    with ThreadPoolExecutor(10) as pool:
        checks_of_acme = [pool.submit(ask, acme) for _ in range(8)]
        refused = [it.result() for it in islice(as_completed(checks_of_acme), 3)]
        zoo_response = pool.submit(ask, zoo)
        while not all(it.done() for it in (*checks_of_acme, zoo_response)):
            # A check that waits at the gate continues.
            with suppress(OSError):
                os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    assert refused == [429] * 3
    assert [it.result() for it in checks_of_acme].count(200) == 5
    assert zoo_response.result() == 200
