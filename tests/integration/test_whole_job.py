import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tasks.contract import record_key
from tasks.stages.submit import submit
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from tasks.state.keys import FLEET
from tasks.store import Store, cache_index_key
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.waiting import wait_until
from worker.local.embedded_broker import find_running


def published(fleet: Fleet, job: dict[str, Any]) -> dict[str, Any]:
    ran = fleet.submit(job, "--watch")
    assert ran.code == 0, f"{ran}\n{fleet.log()}"
    return ran.documents[-1]


def test_images_become_a_published_lora_on_the_right_workers(
    fleet: Fleet, job: dict[str, Any], images: Path
) -> None:
    # What no other job of this fleet has cached.
    (images / "01.txt").write_text("an edited caption", "utf-8")
    result = published(fleet, job)
    file = Path(result["published"])
    assert file.name == "shapes.safetensors"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == result["sha256"]

    stages = fleet.status(result["job_id"])["stages"]
    assert [stages[s]["queue"] for s in ("prepare", "cache", "train", "publish")] == [
        "cpu",
        "gpu.40gb",
        "gpu.40gb",
        "cpu",
    ]
    assert "40gb" in stages["train"]["worker"]
    manifest = json.loads(Path(result["manifest"]).read_text())
    names = [entry["name"] for entry in manifest["files"]]
    assert names[:3] == [
        "shapes.safetensors",
        "shapes-step00000004.safetensors",
        "shapes-step00000008.safetensors",
    ]
    for entry in manifest["files"]:
        path = file.parent / entry["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]

    # Other users of the machine read nothing of it, though the umask would let them.
    for path in (file, Path(result["manifest"]), *(fleet.home / "store").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0

    # What it took is known to later ones.
    learned = fleet.run("durations", "--json").documents[0]
    assert {stage["stage"]: stage["unit"] for stage in learned["stages"]} == {
        "prepare": "image",
        "cache": "entry",
        "train": "step",
        "publish": "job",
    }
    # This fleet has run the jobs of other tests, too: only queues that had a job are listed.
    jobs = json.loads(fleet.run("list", "--limit", "1000", "--json").out)
    used = {stage["queue"] for job in jobs for stage in job["stages"].values()}
    assert {"cpu", "gpu.40gb"} <= {queue["queue"] for queue in learned["queues"]} <= used
    expected = fleet.submit(job, "--dry-run").documents[0]["expected"]
    assert expected["unknown"] == []
    train = expected["stages"][2]
    assert train["runs"] > 0
    assert train["scaled_from"] is None
    assert expected["total_s"] > train["seconds"] > 0


def test_a_repeated_job_encodes_nothing_and_has_the_same_file(
    fleet: Fleet, job: dict[str, Any]
) -> None:
    first = published(fleet, job)
    second = published(fleet, job)
    assert first["job_id"] != second["job_id"]
    assert first["sha256"] == second["sha256"]
    stage = fleet.status(second["job_id"])["stages"]["cache"]
    assert stage["summary"].startswith("0 images and 0 captions encoded")
    # Nor does it wait for a GPU to find that out.
    assert stage["queue"] == "cpu"


def test_a_lost_message_is_sent_again_under_the_same_result_id(
    fleet: Fleet, job: dict[str, Any]
) -> None:
    url = find_running(fleet.home)
    assert url is not None
    with connect(url) as client:
        client.delete(FLEET)  # the job waits for its tenant's share
        job_id = submit(job, JobStore(client, timedelta(hours=1)), "lost-and-found")[0]
        client.hset(record_key(job_id), "waiting_message", "what no worker can read")
    backend = Celery(broker=url, backend=url, set_as_current=False)
    result = backend.AsyncResult("lost-and-found").get(timeout=PATIENCE_S)
    assert result["job_id"] == job_id
    assert fleet.status(job_id)["status"] == "succeeded"


def test_a_pack_damaged_during_a_run_is_encoded_again(
    fleet: Fleet, job: dict[str, Any], images: Path
) -> None:
    (images / "02.txt").write_text("a caption that no other job has", "utf-8")
    first = published(fleet, job)
    store = Store((fleet.home / "store").as_uri())
    index = json.loads(store.get(cache_index_key(first["job_id"])))
    for key in set(index["packs"].values()):
        data = store.get(key)
        store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    second = published(fleet, job)
    assert second["sha256"] == first["sha256"]
    assert fleet.run("cache", "verify", "--json").code == 0
    listed = fleet.run("cache", "list", "--json").documents[0]
    assert listed["latents"]["packs"] > 0
    printed = fleet.run("cache", "prune", "--max-size", "0", "--json").documents[0]
    # All of it was used within the hour.
    assert printed["removed"] == 0


def test_watch_shows_every_stage_and_the_loss(fleet: Fleet, job: dict[str, Any]) -> None:
    events = fleet.submit(job, "--watch").documents[1:-1]
    started = [event["stage"] for event in events if event["kind"] == "stage_started"]
    assert started == ["prepare", "cache", "train", "publish"]
    steps = [event for event in events if event["kind"] == "progress" and event["unit"] == "steps"]
    assert steps[-1]["done"] == steps[-1]["total"] == 12
    assert all(step["loss"] > 0 for step in steps)


def test_a_result_follows_a_whole_job_sent_by_wire_name(fleet: Fleet, job: dict[str, Any]) -> None:
    """Most of the jobs wait in their tenant queue."""
    url = find_running(fleet.home)
    backend = Celery(broker=url, backend=url, set_as_current=False)
    sent = [
        backend.send_task("training.submit", args=[{**job, "tenant": tenant}], queue="cpu")
        for tenant in ("a", "a", "a", "b")
    ]
    results = [result.get(timeout=PATIENCE_S) for result in sent]
    assert len({result["job_id"] for result in results}) == len(sent)
    assert all(Path(result["published"]).exists() for result in results)
    tenants = {row["tenant"]: row for row in json.loads(fleet.run("tenants", "--json").out)}
    assert not any(row["in_flight"] or row["waiting"] for row in tenants.values())
    assert [tenants[name]["usage"]["succeeded"] for name in "ab"] == [3, 1]
    assert all(tenants[name]["usage"]["gpu_seconds"]["40gb"] > 0 for name in "ab")


def test_a_backend_gets_all_problems_of_its_job(fleet: Fleet, job: dict[str, Any]) -> None:
    job["training"] |= {"lora_rank_dim": 0, "colour": "red"}
    url = find_running(fleet.home)
    backend = Celery(broker=url, backend=url, set_as_current=False)
    sent = backend.send_task("training.submit", args=[job], queue="cpu")
    with pytest.raises(Exception, match=r"(?s)lora_rank_dim.*colour"):
        sent.get(timeout=PATIENCE_S)


def test_the_same_job_id_submitted_twice_is_one_job(fleet: Fleet, job: dict[str, Any]) -> None:
    job["id"] = "only-once"
    first = published(fleet, job)
    again = published(fleet, job)
    assert first == again
    assert fleet.status("only-once")["attempt"] == 4


def test_a_waiting_job_names_the_missing_worker_and_keeps_its_class(
    tmp_path: Path, job: dict[str, Any]
) -> None:
    with Fleet(tmp_path / "small-fleet", "24gb") as small:
        refused = small.submit(job, "--require-worker")
        assert refused.code == 7
        assert "no live worker serves gpu.40gb" in refused.documents[0]["error"]["message"]

        [sent] = small.submit(job).documents
        assert (
            "no live worker serves gpu.40gb: live workers serve cpu, gpu" in sent["waiting_reason"]
        )
        job_id = sent["job_id"]
        wait_until(
            lambda: small.status(job_id)["pending_queue"] == "gpu.40gb",
            timeout_s=PATIENCE_S,
            description="the job waits for a GPU worker",
            detail=small.log,
        )
        status = small.status(job_id)
        assert "no live worker serves gpu.40gb" in status["waiting_reason"]
        assert set(status["stages"]) == {"prepare"}
        assert json.loads(small.run("cancel", job_id, "--json").out)["status"] == "cancelled"
