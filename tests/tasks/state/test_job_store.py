from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from redis import Redis

from tasks import events
from tasks.contract import record_key
from tasks.errors import ErrorCode, InvalidJobError, JobError, SupersededError, UnknownJobError
from tasks.stages.submit import submit, with_id
from tasks.state.artifacts import JobArtifacts
from tasks.state.control import JobControl
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import DispatchOutcome, JobStore, StartOutcome
from tasks.state.record import JobStatus, StageRecord

HOUR = timedelta(hours=1)
NOTE = events.Note(level="info", message="a note")


def admitted(state: JobStore, document: dict[str, Any]) -> str:
    job_id, _, dispatch = submit(document, state, "result")
    assert dispatch
    return job_id


def begin(state: JobStore, job_id: str, stage: str, *, tag: str = "t") -> FencingToken:
    outcome, token, *_ = state.begin(job_id, stage, worker="w", queue="q", tag=tag)
    assert outcome == StartOutcome.BEGUN
    return token


def outcome_of(state: JobStore, job_id: str, stage: str) -> StartOutcome:
    return state.begin(job_id, stage, worker="w2", queue="q", tag="another")[0]


def hold(redis_client: Redis, tag: str) -> None:
    """Record a delivery, as kombu does."""
    redis_client.zadd("unacked_index", {tag: 1.0})


def finish(state: JobStore, job_id: str, token: FencingToken, stage: str, **result: Any) -> None:
    record = StageRecord(queue="q", worker="w", attempt=token.attempt, started_at=0, seconds=1.5)
    state.finish_stage(job_id, token, stage, record, JobArtifacts(dataset="k"), result or None)


def assert_superseded(state: JobStore, job_id: str, old: FencingToken) -> None:
    """Check that a start can change nothing."""
    before = state.get(job_id)
    writes: list[Callable[[], object]] = [
        lambda: state.write(job_id, old, [NOTE]),
        lambda: state.write(job_id, old, [NOTE], JobArtifacts(cache_index="stale")),
        lambda: state.requested_state(job_id, old),
        lambda: finish(state, job_id, old, "prepare"),
        lambda: state.release(job_id, old, NOTE),
        lambda: state.fail(job_id, old, JobError("late")),
    ]
    for write in writes:
        with pytest.raises(SupersededError):
            write()
    assert state.get(job_id) == before


def test_a_job_waits_in_the_cpu_queue_and_then_in_its_gpu_queue(
    state: JobStore, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    assert state.get(job_id).pending_queue == "cpu"
    token = begin(state, job_id, "prepare")
    assert state.get(job_id).pending_queue is None
    finish(state, job_id, token, "prepare")
    record = state.get(job_id)
    assert (record.stage, record.pending_queue) == ("cache", "gpu.40gb")
    assert record.artifacts == JobArtifacts(dataset="k")
    assert record.stages["prepare"].seconds == 1.5


def test_an_unknown_job_is_an_error_in_every_call(state: JobStore, redis_client: Redis) -> None:
    with pytest.raises(UnknownJobError):
        state.get("unknown")
    with pytest.raises(UnknownJobError):
        JobControl(redis_client, HOUR).cancel("unknown")
    with pytest.raises(UnknownJobError):
        begin(state, "unknown", "prepare")


def test_an_id_belongs_to_one_job(state: JobStore, job_document: dict[str, Any]) -> None:
    document = {**job_document, "id": "mine"}
    _, first, dispatch_first = submit(document, state, "result")
    _, second, dispatch_again = submit(document, state, "result")
    assert first == second
    assert dispatch_first == dispatch_again == DispatchOutcome.SENT
    begin(state, "mine", "prepare")
    assert submit(document, state, "another result").outcome == DispatchOutcome.EXISTS
    with pytest.raises(InvalidJobError, match="another job has the id"):
        submit({**document, "name": "other"}, state, "result")


def test_a_repeated_message_is_the_same_job(state: JobStore, job_document: dict[str, Any]) -> None:
    first, again, other = (with_id(job_document, it) for it in ("message", "message", "another"))
    assert first == again != other
    assert with_id({**job_document, "id": "mine"}, "message")["id"] == "mine"
    job_id, _, admission = submit(first, state, "message")
    assert admission == DispatchOutcome.SENT
    begin(state, job_id, "prepare")
    assert submit(again, state, "message")[::2] == (job_id, DispatchOutcome.WAITING)


def test_a_stage_is_taken_over_once_its_message_is_lost(
    state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    hold(redis_client, "first")
    first = begin(state, job_id, "prepare", tag="first")
    assert outcome_of(state, job_id, "prepare") == StartOutcome.DUPLICATE
    redis_client.zrem("unacked_index", "first")
    second = begin(state, job_id, "prepare", tag="second")
    assert second > first


def test_a_superseded_start_cannot_write(state: JobStore, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, job_document)
    old = begin(state, job_id, "prepare")
    begin(state, job_id, "prepare")
    assert_superseded(state, job_id, old)


def test_a_start_with_a_repeated_number_supersedes(
    state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    before = redis_client.dump(record_key(job_id))
    old = begin(state, job_id, "prepare", tag="first")
    # A replica that never got the first start takes over from the broker.
    redis_client.restore(record_key(job_id), 0, cast("Any", before), replace=True)
    new = begin(state, job_id, "prepare", tag="second")
    assert old.attempt == new.attempt
    assert old.start_id != new.start_id
    assert_superseded(state, job_id, old)
    state.write(job_id, new, [NOTE])
    finish(state, job_id, new, "prepare")
    assert state.get(job_id).stage == "cache"


def test_a_finished_stage_is_done_until_its_successor_begins(
    state: JobStore, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    finish(state, job_id, begin(state, job_id, "prepare"), "prepare")
    assert outcome_of(state, job_id, "prepare") == StartOutcome.DONE
    begin(state, job_id, "cache")
    assert outcome_of(state, job_id, "prepare") == StartOutcome.DUPLICATE


def test_a_stage_that_always_loses_its_worker_fails(
    state: JobStore, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    begin(state, job_id, "prepare")
    for _ in range(4):
        begin(state, job_id, "prepare")
    assert outcome_of(state, job_id, "prepare") == StartOutcome.EXHAUSTED
    record = state.get(job_id)
    assert record.status == JobStatus.FAILED
    assert record.error_code == ErrorCode.TRAINER_FAILED
    assert "started 5 times" in (record.error or "")


def test_a_released_stage_spends_no_start(state: JobStore, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, job_document)
    for _ in range(10):
        token = begin(state, job_id, "prepare")
        state.release(job_id, token, events.Note(level="info", message="the worker stops"))
    assert state.get(job_id).pending_queue == "cpu"


def test_the_last_stage_ends_the_job_with_its_result(
    state: JobStore, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    for stage in ("prepare", "cache", "train"):
        finish(state, job_id, begin(state, job_id, stage), stage)
    finish(state, job_id, begin(state, job_id, "publish"), "publish", published="/lamp")
    record = state.get(job_id)
    assert (record.status, record.result) == (JobStatus.SUCCEEDED, {"published": "/lamp"})
    kinds = [event.kind for _, event in state.events(job_id)]
    assert kinds == ["accepted", *["stage_started", "stage_finished"] * 4, "ended"]


def test_events_are_read_from_a_position(state: JobStore, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, job_document)
    [(position, _)] = state.events(job_id)
    begin(state, job_id, "prepare")
    [(_, event)] = state.events(job_id, after=position)
    assert event == events.StageStarted(stage="prepare", attempt=1, queue="q", worker="w")


def test_jobs_are_listed_newest_first(state: JobStore, job_document: dict[str, Any]) -> None:
    ids = [admitted(state, job_document) for _ in range(3)]
    assert [record.id for record in state.newest(2)] == [ids[2], ids[1]]


def test_a_checkpoint_resets_the_count_of_starts(
    state: JobStore, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    for _ in range(20):
        token = begin(state, job_id, "prepare")
        note = events.Note(level="info", message="a checkpoint")
        state.write(job_id, token, [note], JobArtifacts(cache_index="one"))
    assert not state.get(job_id).status.ended


def test_a_released_stage_may_begin_later(state: JobStore, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, job_document)
    note = events.Note(level="info", message="later")
    state.release(job_id, begin(state, job_id, "prepare"), note, {"retries": "1"}, delay_s=100)
    record = state.get(job_id)
    assert record.due_at is not None
    assert 99 < (record.due_at - record.updated_at).total_seconds() < 101
    assert record.retries == 1
    begin(state, job_id, "prepare")
    assert state.get(job_id).due_at is None


def test_every_key_expires(
    state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    finish(state, job_id, begin(state, job_id, "prepare"), "prepare")
    other = admitted(state, job_document)
    token = begin(state, other, "prepare")
    state.release(other, token, events.Note(level="info", message="later"), delay_s=1)
    dead = admitted(state, job_document)
    state.fail(dead, begin(state, dead, "prepare"), JobError("broken"))
    ttls = {key: redis_client.ttl(key) for key in redis_client.scan_iter("training:*")}
    usage = [ttls.pop(key) for key in list(ttls) if key.startswith("training:usage:")]
    assert len(usage) == 2
    assert all(ttl == timedelta(days=400).total_seconds() for ttl in usage), usage
    assert len(ttls) == 2 * 3 + 10
    assert 7190 < ttls.pop("training:jobs:renewals") <= 7200
    assert all(3590 < ttl <= 3600 for ttl in ttls.values()), ttls


def test_a_job_is_parsed_once(state: JobStore, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, job_document)
    assert state.get(job_id).job is state.get(job_id).job


def test_a_start_gets_the_current_record(state: JobStore, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, {**job_document, "name": "caf_1"})
    _, token, record, _ = state.begin(job_id, "prepare", worker="wörker", queue="q", tag="t")
    assert record == state.get(job_id)
    assert record.stages["prepare"].worker == "wörker"
    assert record.attempt == token.attempt
