"""What becomes of jobs that another version of the program has recorded."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from tasks.contract import events_key, record_key
from tasks.errors import ErrorCode, JobError, UnreadableJobError
from tasks.events import Note, StageStarted
from tasks.stages.submit import newer_than_known, submit
from tasks.state import keys
from tasks.state.control import JobControl
from tasks.state.job_store import DispatchOutcome, JobStore, StartOutcome
from tasks.state.record import VERSION, JobStatus
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import WorkerHeartbeat, WorkerInfo, live_workers, newest_versions

HOUR = timedelta(hours=1)
NEWER = VERSION + 1


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document, state, "the-result").job_id


@pytest.fixture
def make_newer(redis_client: Redis) -> Callable[[str], None]:
    """Changes a job to what a newer version records."""

    def change(job_id: str) -> None:
        key = record_key(job_id)
        job = json.loads(str(redis_client.hget(key, "job")))
        fields: dict[Any, Any] = {
            "version": NEWER,
            "job": json.dumps({**job, "mood": "good"}),
            "new_field": "1",
        }
        redis_client.hset(key, mapping=fields)

    return change


@pytest.fixture
def newer(job_id: str, make_newer: Callable[[str], None]) -> str:
    make_newer(job_id)
    return job_id


@pytest.fixture
def control(redis_client: Redis) -> JobControl:
    return JobControl(redis_client, HOUR)


def begin(state: JobStore, job_id: str, stage: str = "prepare", **more: Any) -> StartOutcome:
    given: dict[str, Any] = {"worker": "w@here", "queue": "cpu", "tag": "t", **more}
    return state.begin(job_id, stage, **given)[0]


def register_worker(client: Redis, version: int, queue: str) -> None:
    info = WorkerInfo(version=version, queues=(queue,), memory_class=None)
    WorkerHeartbeat(client, f"{version}-{queue}", info, HOUR).renew()


def notes(state: JobStore, job_id: str) -> list[str]:
    return [event.message for _, event in state.events(job_id) if isinstance(event, Note)]


def test_a_newer_job_is_deferred_and_costs_no_retry(
    state: JobStore, control: JobControl, redis_client: Redis, newer: str
) -> None:
    before = redis_client.time()[0]
    assert begin(state, newer, retry_in_s=60) == StartOutcome.NEWER
    summary = state.summary(newer)
    assert (summary.status, summary.stage, summary.attempt, summary.retries) == (
        "queued",
        "prepare",
        0,
        0,
    )
    assert summary.due_at is not None
    assert summary.due_at.timestamp() - before >= 60
    assert redis_client.hexists(record_key(newer), "starts") is False
    # It has no message and no tenant queue, so no worker defers it again before it is due.
    assert control.summaries_in_flight() == []
    assert control.take_due() == []
    redis_client.zadd(keys.DUE, {newer: 1})
    # No live worker of its queue is new enough.
    register_worker(redis_client, VERSION, "cpu")
    register_worker(redis_client, NEWER, "gpu.40gb")
    assert control.take_due() == []
    register_worker(redis_client, NEWER, "cpu")
    assert [summary.id for summary in control.take_due()] == [newer]
    assert control.take_due() == []
    assert [summary.id for summary in control.summaries_in_flight()] == [newer]

    assert begin(state, newer) == StartOutcome.STILL_NEWER
    note = f"prepare waits for a worker of version {NEWER}; w@here is of version {VERSION}"
    assert notes(state, newer) == [note]


def test_a_newer_message_is_deferred(state: JobStore, job_id: str) -> None:
    assert begin(state, job_id, version=NEWER) == StartOutcome.NEWER


def test_a_lost_newer_stage_is_deferred(
    state: JobStore, redis_client: Redis, job_id: str, make_newer: Callable[[str], None]
) -> None:
    assert begin(state, job_id) == StartOutcome.BEGUN
    make_newer(job_id)
    redis_client.zadd("unacked_index", {"t": 1.0})
    assert begin(state, job_id, tag="another") == StartOutcome.DUPLICATE
    redis_client.zrem("unacked_index", "t")
    assert begin(state, job_id, tag="another") == StartOutcome.NEWER
    assert state.summary(job_id).pending_queue == "cpu"


def test_begin_records_the_workers_version(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    redis_client.hset(record_key(job_id), "version", 0)
    assert begin(state, job_id) == StartOutcome.BEGUN
    assert state.summary(job_id).version == VERSION


def test_lists_skip_and_log_unreadable_jobs(
    state: JobStore,
    control: JobControl,
    job_document: dict[str, Any],
    newer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = submit(job_document, state, "another").job_id
    assert [record.id for record in state.newest(9)] == [known]
    assert [record.id for record in control.in_flight()] == [known]
    problem = f"job {newer} has version {NEWER}, and this program reads {VERSION}"
    assert caplog.text.count(problem) == 2
    with pytest.raises(UnreadableJobError, match=problem):
        state.get(newer)
    # It is in flight nevertheless.
    assert {summary.id for summary in control.summaries_in_flight()} == {known, newer}


def test_a_newer_job_can_be_paused_resumed_and_cancelled(
    state: JobStore, control: JobControl, newer: str
) -> None:
    assert control.pause(newer) == JobStatus.PAUSED
    assert control.resume(newer)
    assert control.cancel(newer) == JobStatus.CANCELLED
    assert state.summary(newer).failure() is not None


def test_a_newer_job_leaves_its_tenant_queue_once(
    redis_client: Redis, job_document: dict[str, Any], make_newer: Callable[[str], None]
) -> None:
    queues = TenantQueues(redis_client, HOUR)
    state = JobStore(redis_client, HOUR)
    job_id, _, outcome = submit(job_document, state, "the-result")
    assert outcome == DispatchOutcome.WAITING
    make_newer(job_id)
    queues.publish_fleet([WorkerInfo(queues=("cpu",), memory_class=None)], {}, HOUR)
    assert queues.dispatch() == [job_id]
    assert redis_client.llen("cpu") == 1
    assert begin(state, job_id) == StartOutcome.NEWER
    assert queues.dispatch() == []
    assert queues.waiting() == {}


def test_submitting_a_newer_job_again_leaves_it_alone(
    state: JobStore, job_document: dict[str, Any], make_newer: Callable[[str], None]
) -> None:
    document = {**job_document, "id": "mine"}
    submit(document, state, "the-result")
    make_newer("mine")
    assert submit(document, state, "another").outcome == DispatchOutcome.EXISTS
    assert submit(document, state, "the-result").outcome == DispatchOutcome.WAITING


def test_a_record_without_an_estimate_gets_a_new_one(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    routed_by = state.get(job_id).estimate
    redis_client.hdel(record_key(job_id), "estimate", "version")
    assert state.get(job_id).estimate == routed_by
    assert begin(state, job_id) == StartOutcome.BEGUN


def test_an_unreadable_record_fails_its_job(
    state: JobStore, redis_client: Redis, control: JobControl, job_id: str
) -> None:
    key = record_key(job_id)
    job = json.loads(str(redis_client.hget(key, "job")))
    redis_client.hset(key, "job", json.dumps({**job, "gone_since": 1}))
    with pytest.raises(JobError, match=rf"reads {VERSION} but not this record: gone_since: Extra"):
        begin(state, job_id)
    summary = state.summary(job_id)
    assert (summary.status, summary.error_code, summary.error_stage) == (
        "failed",
        "internal",
        "prepare",
    )
    assert "gone_since" in str(summary.error)
    assert control.summaries_in_flight() == []


def test_events_of_newer_versions_are_noted(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    assert begin(state, job_id) == StartOutcome.BEGUN
    key = events_key(job_id)
    redis_client.xadd(key, {"event": '{"kind": "applause", "loud": true}'})
    assert notes(state, job_id) == ["an event of a newer version: 'applause'"]
    assert any(isinstance(event, StageStarted) for _, event in state.events(job_id))


def test_unknown_error_codes_are_internal(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    redis_client.hset(record_key(job_id), mapping={"error_code": "sunspots", "error": "flares"})
    failure = state.summary(job_id).failure()
    assert failure is not None
    assert (failure.code, failure.message) == (ErrorCode.INTERNAL, "flares")


def test_heartbeats_of_other_versions_are_read_or_skipped(
    redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    info = WorkerInfo(version=NEWER, queues=("cpu",), memory_class=None)
    WorkerHeartbeat(redis_client, "new@here", info, HOUR).renew()
    key = "training:worker:new@here"
    heartbeat = json.loads(str(redis_client.get(key)))
    redis_client.set(key, json.dumps({**heartbeat, "mood": "good"}))
    odd = WorkerInfo(queues=("gpu.40gb",), memory_class=None)
    WorkerHeartbeat(redis_client, "odd@here", odd, HOUR).renew()
    redis_client.set("training:worker:odd@here", '{"queues": ["gpu.160gb"], "memory_class": "9"}')
    assert live_workers(redis_client) == {"new@here": info}
    assert "odd@here" in caplog.text
    assert newest_versions(redis_client) == {"cpu": NEWER}


def test_heartbeats_hold_no_fields_at_their_defaults(redis_client: Redis) -> None:
    WorkerHeartbeat(redis_client, "w", WorkerInfo(queues=("cpu",), memory_class=None), HOUR).renew()
    heartbeat = json.loads(str(redis_client.get("training:worker:w")))
    assert heartbeat == {"queues": ["cpu"], "memory_class": None}


@pytest.mark.parametrize(
    ("document", "newer"),
    [
        ({"schema_version": 2}, True),
        ({"schema_version": 1}, False),
        ({"schema_version": "2"}, False),
        ({}, False),
        ([], False),
    ],
    ids=str,
)
def test_a_documents_version_is_compared(document: Any, newer: bool) -> None:
    assert newer_than_known(document) == newer
