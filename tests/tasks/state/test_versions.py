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
from tasks.state.record import VERSION, JobStatus, JobSummary
from tasks.state.tenant_queues import TenantQueues
from tasks.state.workers import WorkerHeartbeat, WorkerInfo, live_workers, newest_versions

HOUR = timedelta(hours=1)
NEWER = VERSION + 1


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document, state, "the-result").job_id


@pytest.fixture
def make_newer(redis_client: Redis) -> Callable[[str], None]:
    """Let a job be as a later version records it."""

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


def note_worker(client: Redis, version: int, queue: str) -> None:
    note = WorkerInfo(version=version, queues=(queue,), memory_class=None)
    WorkerHeartbeat(client, f"{version}-{queue}", note, HOUR).renew()


def notes(state: JobStore, job_id: str) -> list[str]:
    return [event.message for _, event in state.events(job_id) if isinstance(event, Note)]


def test_a_newer_job_is_passed_on_after_a_while_and_costs_no_try(
    state: JobStore, control: JobControl, redis_client: Redis, newer: str
) -> None:
    before = redis_client.time()[0]
    assert begin(state, newer, retry_in_s=60) == StartOutcome.NEWER
    head = state.summary(newer)
    assert (head.status, head.stage, head.attempt, head.retries) == ("queued", "prepare", 0, 0)
    assert head.due_at is not None
    assert head.due_at.timestamp() - before >= 60
    assert redis_client.hexists(record_key(newer), "starts") is False
    # Neither a message nor a lane, so nothing goes in a circle until it is due.
    assert control.summaries_in_flight() == []
    assert control.take_due() == []
    redis_client.zadd(keys.DUE, {newer: 1})
    # Nobody is there who could take it.
    note_worker(redis_client, VERSION, "cpu")
    note_worker(redis_client, NEWER, "gpu.40gb")
    assert control.take_due() == []
    note_worker(redis_client, NEWER, "cpu")
    assert [head.id for head in control.take_due()] == [newer]
    assert control.take_due() == []
    assert [head.id for head in control.summaries_in_flight()] == [newer]

    assert begin(state, newer) == StartOutcome.STILL_NEWER
    told = f"prepare waits for a worker of version {NEWER}; w@here is of version {VERSION}"
    assert notes(state, newer) == [told]


def test_a_message_of_a_newer_version_is_passed_on_too(state: JobStore, job_id: str) -> None:
    assert begin(state, job_id, version=NEWER) == StartOutcome.NEWER


def test_a_newer_stage_whose_worker_was_lost_waits_for_another_one(
    state: JobStore, redis_client: Redis, job_id: str, make_newer: Callable[[str], None]
) -> None:
    assert begin(state, job_id) == StartOutcome.BEGUN
    make_newer(job_id)
    redis_client.zadd("unacked_index", {"t": 1.0})
    assert begin(state, job_id, tag="another") == StartOutcome.DUPLICATE
    redis_client.zrem("unacked_index", "t")
    assert begin(state, job_id, tag="another") == StartOutcome.NEWER
    assert state.summary(job_id).pending_queue == "cpu"


def test_what_a_worker_has_begun_is_not_for_older_ones_any_more(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    redis_client.hset(record_key(job_id), "version", 0)
    assert begin(state, job_id) == StartOutcome.BEGUN
    assert state.summary(job_id).version == VERSION


def test_lists_leave_out_what_they_cannot_read_and_say_so(
    state: JobStore,
    control: JobControl,
    job_document: dict[str, Any],
    newer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = submit(job_document, state, "another").job_id
    assert [record.id for record in state.newest(9)] == [known]
    assert [record.id for record in control.in_flight()] == [known]
    told = f"job {newer} has version {NEWER}, and this program reads {VERSION}"
    assert caplog.text.count(told) == 2
    with pytest.raises(UnreadableJobError, match=told):
        state.get(newer)
    # It is in flight all the same.
    assert {head.id for head in control.summaries_in_flight()} == {known, newer}


def test_people_can_pause_resume_and_cancel_a_newer_job(
    state: JobStore, control: JobControl, newer: str
) -> None:
    assert control.pause(newer) == JobStatus.PAUSED
    assert control.resume(newer)
    assert control.cancel(newer) == JobStatus.CANCELLED
    assert state.summary(newer).failure() is not None


def test_a_newer_job_leaves_its_lane_once(
    redis_client: Redis, job_document: dict[str, Any], make_newer: Callable[[str], None]
) -> None:
    sent: list[JobSummary] = []
    lanes = TenantQueues(redis_client, HOUR, sent.append)
    state = JobStore(redis_client, HOUR)
    job_id, _, admission = submit(job_document, state, "the-result")
    assert admission == DispatchOutcome.WAITING
    make_newer(job_id)
    lanes.publish_fleet([WorkerInfo(queues=("cpu",), memory_class=None)], {}, HOUR)
    assert lanes.dispatch() == [job_id]
    assert [(head.id, head.version) for head in sent] == [(job_id, NEWER)]
    assert begin(state, job_id) == StartOutcome.NEWER
    assert lanes.dispatch() == []
    assert lanes.waiting() == {}


def test_a_newer_job_that_is_submitted_again_goes_on_undisturbed(
    state: JobStore, job_document: dict[str, Any], make_newer: Callable[[str], None]
) -> None:
    document = {**job_document, "id": "mine"}
    submit(document, state, "the-result")
    make_newer("mine")
    assert submit(document, state, "another").outcome == DispatchOutcome.EXISTS
    assert submit(document, state, "the-result").outcome == DispatchOutcome.WAITING


def test_a_record_without_an_estimate_is_read_with_one_made_anew(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    routed_by = state.get(job_id).estimate
    redis_client.hdel(record_key(job_id), "estimate", "version")
    assert state.get(job_id).estimate == routed_by
    assert begin(state, job_id) == StartOutcome.BEGUN


def test_an_older_record_that_cannot_be_read_ends_its_job_in_clear_words(
    state: JobStore, redis_client: Redis, control: JobControl, job_id: str
) -> None:
    key = record_key(job_id)
    job = json.loads(str(redis_client.hget(key, "job")))
    redis_client.hset(key, "job", json.dumps({**job, "gone_since": 1}))
    with pytest.raises(JobError, match=r"reads 1 but not this record: gone_since: Extra"):
        begin(state, job_id)
    head = state.summary(job_id)
    assert (head.status, head.error_code, head.error_stage) == ("failed", "internal", "prepare")
    assert "gone_since" in str(head.error)
    assert control.summaries_in_flight() == []


def test_what_a_newer_version_tells_is_told_of(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    assert begin(state, job_id) == StartOutcome.BEGUN
    key = events_key(job_id)
    redis_client.xadd(key, {"event": '{"kind": "applause", "loud": true}'})
    assert notes(state, job_id) == ["an event of a newer version: 'applause'"]
    assert any(isinstance(event, StageStarted) for _, event in state.events(job_id))


def test_an_error_code_that_newer_versions_know_is_an_internal_one(
    state: JobStore, redis_client: Redis, job_id: str
) -> None:
    redis_client.hset(record_key(job_id), mapping={"error_code": "sunspots", "error": "flares"})
    failure = state.summary(job_id).failure()
    assert failure is not None
    assert (failure.code, failure.message) == (ErrorCode.INTERNAL, "flares")


def test_notes_of_workers_of_other_versions_are_read_or_left_out(
    redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    note = WorkerInfo(version=NEWER, queues=("cpu",), memory_class=None)
    WorkerHeartbeat(redis_client, "new@here", note, HOUR).renew()
    key = "training:worker:new@here"
    told = json.loads(str(redis_client.get(key)))
    redis_client.set(key, json.dumps({**told, "mood": "good"}))
    odd = WorkerInfo(queues=("gpu.40gb",), memory_class=None)
    WorkerHeartbeat(redis_client, "odd@here", odd, HOUR).renew()
    redis_client.set("training:worker:odd@here", '{"queues": ["gpu.160gb"], "memory_class": "9"}')
    assert live_workers(redis_client) == {"new@here": note}
    assert "odd@here" in caplog.text
    assert newest_versions(redis_client) == {"cpu": NEWER}


def test_a_worker_notes_nothing_that_the_first_version_does_not_know(redis_client: Redis) -> None:
    WorkerHeartbeat(redis_client, "w", WorkerInfo(queues=("cpu",), memory_class=None), HOUR).renew()
    noted = json.loads(str(redis_client.get("training:worker:w")))
    assert noted == {"queues": ["cpu"], "memory_class": None}


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
def test_a_document_says_which_version_it_is_for(document: Any, newer: bool) -> None:
    assert newer_than_known(document) == newer
