"""A broker that is lost takes no finished job with it."""

import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.archive import Recovery, RecoveryReport, archive_record
from tasks.contract import record_key
from tasks.errors import JobError
from tasks.events import JobEnded
from tasks.jobs.job import TrainingJob
from tasks.stages.outcomes import Failed
from tasks.stages.publish import publish
from tasks.stages.submit import submit
from tasks.stages.worker_context import WorkerContext
from tasks.state.ended_jobs import EndedJobs
from tasks.state.job_store import JobStore
from tasks.state.record import JobRecord, JobStatus
from tasks.state.tenants.webhook_secrets import WebhookSecrets
from tasks.store import ARCHIVE, Store, archived_record_key
from tests.tasks.stages.test_runner import (
    CACHES,
    TRAINED,
    ScriptedTrainer,
    empty_dataset,
    leave,
    outcome_of,
    run_stage,
    saved,
    worker_with,
)

HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def worker(state: JobStore, store: Store, tmp_path: Path) -> WorkerContext:
    return worker_with(state, store, tmp_path, ScriptedTrainer())


@pytest.fixture
def job_id(worker: WorkerContext, job_document: dict[str, Any]) -> str:
    """A job that has passed all stages."""
    job_document["training"] |= dict.fromkeys(CACHES, False)
    job_document["tenant"] = "acme"
    job_id = submit(job_document, worker.state, "the-result").job_id
    run_stage("prepare", leave(dataset=empty_dataset(worker.store)), job_id, worker)
    run_stage("cache", leave(), job_id, worker)
    left = leave(trained=TRAINED, checkpoints=(saved(worker.store, 20),))
    run_stage("train", left, job_id, worker)
    run_stage("publish", publish, job_id, worker)
    return job_id


def recover(state: JobStore, store: Store, ttl: timedelta = HOUR, **options: Any) -> RecoveryReport:
    client = state._redis
    return Recovery(store, state, EndedJobs(client, ttl), ttl, per_second=1e6, **options).run()


def comparable(record: JobRecord) -> dict[str, Any]:
    """A record without what is measured a moment before its end."""
    fields = record.model_dump(mode="json", exclude={"updated_at"})
    fields["stages"]["publish"].pop("seconds")
    return fields


def test_a_finished_job_is_as_it_was(state: JobStore, store: Store, job_id: str) -> None:
    before = state.get(job_id)
    events = [event for _, event in state.events(job_id)]
    state._redis.flushall()
    restored: list[JobRecord] = []
    report = recover(state, store, on_restored=restored.append)
    assert (report.restored, report.existing, report.unreadable) == ([job_id], 0, {})
    after = state.get(job_id)
    assert comparable(after) == comparable(before)
    assert [job.result_id for job in restored] == ["the-result"]
    found = list(state.events(job_id))
    assert [event.kind for _, event in found] == [event.kind for event in events]
    assert isinstance(found[-1][1], JobEnded)
    assert [entry for _, entry in state.submitted("acme", None, 10)] == [job_id]
    assert [record.id for record in state.newest(10)] == [job_id]
    assert after.artifacts.manifest is not None
    assert json.loads(store.get(after.artifacts.manifest))["job_id"] == job_id


def test_a_record_that_exists_is_never_changed(state: JobStore, store: Store, job_id: str) -> None:
    state._redis.flushall()
    recover(state, store)
    state._redis.hset(record_key(job_id), "reason", "another")
    report = recover(state, store)
    assert (report.restored_count, report.existing) == (0, 1)
    assert state.get(job_id).reason == "another"


def test_a_dry_run_writes_nothing(state: JobStore, store: Store, job_id: str) -> None:
    state._redis.flushall()
    assert recover(state, store, is_dry=True).restored == [job_id]
    assert state._redis.dbsize() == 0


def test_a_record_lives_from_the_end_of_its_job(state: JobStore, store: Store, job_id: str) -> None:
    key = archived_record_key(job_id)
    archived = json.loads(store.get(key))
    assert not {"webhook", "delivery_tag", "gpu_start"} & archived["fields"].keys()
    archived["ended_at"] -= 1800
    store.put(key, json.dumps(archived).encode())
    state._redis.flushall()
    recover(state, store)
    for name in state._redis.scan_iter(f"{record_key(job_id)}*"):
        assert 1700 < int(state._redis.ttl(name)) <= 1800
    state._redis.flushall()
    report = recover(state, store, timedelta(minutes=20))
    assert (report.restored_count, report.expired) == (0, 1)
    assert state._redis.dbsize() == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it.update(job_id="another"), "is the record of another job"),
        (lambda it: it["fields"].update(status="running"), "one that has not ended"),
        (lambda it: it["fields"].pop("job"), "not this record"),
        (lambda it: it["fields"].update(version="99"), "has version 99"),
        (lambda it: it.update(archive_version=2), "is no archived record"),
        (lambda it: it["events"].clear(), "has no event of the job's end"),
        (lambda it: it["fields"].update({"artifact:manifest": '"gone"'}), "no longer has: gone"),
        (lambda it: it.update(ended_at=math.nan), "is no archived record"),
        (lambda it: it.update(ended_at=-math.inf), "is no archived record"),
        (
            lambda it: it["fields"].update(dict.fromkeys(map(str, range(2000)), "")),
            "is no archived record",
        ),
        (lambda it: it["fields"].update(created_at="1e300"), "OverflowError"),
        (lambda it: it["fields"].update(result="[" * 100_000), "RecursionError"),
        (lambda it: it["fields"].pop("tenant"), "is listed for another tenant"),
        (lambda it: it["fields"].update(tenant="zoo"), "is listed for another tenant"),
        (lambda it: it["events"][0].__setitem__(0, "first"), "is no archived record"),
        (lambda it: it["events"].reverse(), "has no event of the job's end"),
        (lambda it: it["events"][0].__setitem__(0, "9999999999999-0"), "not in order"),
        (lambda it: it["events"][0].__setitem__(1, "{"), "has an event that is none"),
        (lambda it: it["events"][0].__setitem__(1, "[1]"), "has an event that is none"),
    ],
)
def test_what_cannot_be_used_is_reported(
    state: JobStore, store: Store, job_id: str, change: Any, reason: str
) -> None:
    key = archived_record_key(job_id)
    archived = json.loads(store.get(key))
    change(archived)
    store.put(key, json.dumps(archived).encode())
    store.put(f"{ARCHIVE}/damaged.json", b"\xff{")
    state._redis.flushall()
    report = recover(state, store)
    assert reason in report.unreadable[job_id]
    assert "is no archived record" in report.unreadable["damaged"]
    assert (report.restored_count, report.unreadable_count) == (0, 2)
    assert state._redis.dbsize() == 0


def test_another_object_of_the_same_name_hides_no_record(
    state: JobStore, store: Store, job_id: str
) -> None:
    store.put(f"{ARCHIVE}/another/{job_id}.json", b"{}")
    state._redis.flushall()
    report = recover(state, store)
    assert (report.restored, report.unreadable) == ([job_id], {})


def test_signatures_of_addresses_are_not_archived(
    worker: WorkerContext, store: Store, job_id: str
) -> None:
    state = worker.state
    job = state.get(job_id).job
    document = job.model_dump(mode="json")
    document["training"]["data_loader"]["dataset"] = {
        "type": "ARCHIVE",
        "archive": "https://example.org/a.zip?signature=hidden",
    }
    signed = TrainingJob.model_validate_json(json.dumps({**document, "id": "signed"}))
    second = submit(signed.model_dump(mode="json"), state, "second").job_id
    run_stage("prepare", leave(dataset=empty_dataset(store)), second, worker)
    run_stage("cache", leave(), second, worker)
    left = leave(trained=TRAINED, checkpoints=(saved(store, 20),))
    run_stage("train", left, second, worker)
    run_stage("publish", publish, second, worker)
    assert b"hidden" not in store.get(archived_record_key(second))
    state._redis.flushall()
    assert recover(state, store).restored_count == 2
    assert state.get(second).job.name == "lamp"


def test_a_failed_job_leaves_no_archive(
    worker: WorkerContext, store: Store, job_document: dict[str, Any]
) -> None:
    job_id = submit(job_document, worker.state, "r").job_id

    def fails(context: object) -> Any:
        raise JobError("x")

    assert isinstance(outcome_of("prepare", fails, job_id, worker), Failed)
    assert worker.state.get(job_id).status == JobStatus.FAILED
    assert store.keys(ARCHIVE) == []


def test_no_webhooks_address_is_archived(
    worker: WorkerContext, state: JobStore, job_document: dict[str, Any]
) -> None:
    WebhookSecrets(state._redis).create("default")
    webhook = {"url": "https://hooks.example/hidden?token=hidden"}
    job_id = submit({**job_document, "webhook": webhook}, state, "result").job_id
    archive_record(worker.store, state, job_id)
    archived = worker.store.get(archived_record_key(job_id)).decode()
    assert "https://hooks.example" in archived
    assert "hidden" not in archived
