from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from tasks import events
from tasks.errors import ErrorCode, InvalidJobError, JobError
from tasks.records import JobStatus, StageRecord, SupersededError, UnknownJobError
from tasks.state import BeginOutcome, JobState
from tasks.submit import admit


def admitted(state: JobState, document: dict[str, Any]) -> str:
    job_id, _, dispatch = admit(document, state, "result")
    assert dispatch
    return job_id


def begin(state: JobState, job_id: str, stage: str, *, redelivered: bool = False) -> int:
    outcome, attempt = state.begin(job_id, stage, worker="w", queue="q", redelivered=redelivered)
    assert outcome == BeginOutcome.BEGUN
    return attempt


def outcome_of(state: JobState, job_id: str, stage: str, *, redelivered: bool) -> BeginOutcome:
    return state.begin(job_id, stage, worker="w2", queue="q", redelivered=redelivered)[0]


def finish(state: JobState, job_id: str, attempt: int, stage: str, **result: Any) -> None:
    record = StageRecord(queue="q", worker="w", attempt=attempt, started_at=0, seconds=1.5)
    state.finish_stage(job_id, attempt, stage, record, {f"{stage}_key": "k"}, result or None)


def test_a_submitted_job_waits_in_the_cpu_queue_and_then_in_its_gpu_queue(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    assert state.get(job_id).waiting_in == "cpu"
    attempt = begin(state, job_id, "prepare")
    assert state.get(job_id).waiting_in is None
    finish(state, job_id, attempt, "prepare")
    record = state.get(job_id)
    assert (record.stage, record.waiting_in) == ("cache", "gpu.40gb")
    assert record.refs == {"prepare_key": "k"}
    assert record.stages["prepare"].seconds == 1.5


def test_an_unknown_job_is_an_error_in_every_call(state: JobState) -> None:
    with pytest.raises(UnknownJobError):
        state.get("nobody")
    with pytest.raises(UnknownJobError):
        state.cancel("nobody")
    with pytest.raises(UnknownJobError):
        begin(state, "nobody", "prepare")


def test_the_same_id_twice_is_one_job_and_another_job_of_that_id_is_refused(
    state: JobState, job_document: dict[str, Any]
) -> None:
    document = {**job_document, "id": "mine"}
    _, first, dispatch_first = admit(document, state, "result")
    _, second, dispatch_again = admit(document, state, "result")
    assert first == second
    assert dispatch_first
    assert dispatch_again
    begin(state, "mine", "prepare")
    assert not admit(document, state, "result")[2]
    with pytest.raises(InvalidJobError, match="id of another job"):
        admit({**document, "name": "other"}, state, "result")


def test_a_second_message_does_not_start_a_running_stage_but_a_redelivered_one_does(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    first = begin(state, job_id, "prepare")
    assert outcome_of(state, job_id, "prepare", redelivered=False) == BeginOutcome.DUPLICATE
    second = begin(state, job_id, "prepare", redelivered=True)
    assert second > first


def test_a_superseded_start_can_write_nothing(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    old = begin(state, job_id, "prepare")
    begin(state, job_id, "prepare", redelivered=True)
    before = state.get(job_id)
    note = events.Note(level="info", message="late")
    writes: list[Callable[[], object]] = [
        lambda: state.emit(job_id, old, note),
        lambda: state.set_refs(job_id, old, {"checkpoints": "stale"}, note),
        lambda: finish(state, job_id, old, "prepare"),
        lambda: state.release(job_id, old, note),
        lambda: state.fail(job_id, old, JobError("late")),
    ]
    for write in writes:
        with pytest.raises(SupersededError):
            write()
    assert state.get(job_id) == before


def test_a_finished_stage_lets_the_chain_go_on_until_its_successor_has_begun(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    finish(state, job_id, begin(state, job_id, "prepare"), "prepare")
    assert outcome_of(state, job_id, "prepare", redelivered=True) == BeginOutcome.DONE
    begin(state, job_id, "cache")
    assert outcome_of(state, job_id, "prepare", redelivered=True) == BeginOutcome.DUPLICATE


def test_a_stage_that_always_loses_its_worker_fails_the_job(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    begin(state, job_id, "prepare")
    for _ in range(4):
        begin(state, job_id, "prepare", redelivered=True)
    assert outcome_of(state, job_id, "prepare", redelivered=True) == BeginOutcome.EXHAUSTED
    record = state.get(job_id)
    assert record.status == JobStatus.FAILED
    assert record.error_code == ErrorCode.TRAINER_FAILED
    assert "started 5 times" in (record.error or "")


def test_a_released_stage_may_begin_again_without_having_spent_a_try(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    for _ in range(10):
        attempt = begin(state, job_id, "prepare")
        state.release(job_id, attempt, events.Note(level="info", message="the worker stops"))
    assert state.get(job_id).waiting_in == "cpu"


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(
    state: JobState, job_document: dict[str, Any]
) -> None:
    waiting, running = admitted(state, job_document), admitted(state, job_document)
    attempt = begin(state, running, "prepare")
    assert state.cancel(waiting) == JobStatus.CANCELLED
    assert outcome_of(state, waiting, "prepare", redelivered=False) == BeginOutcome.ENDED
    assert state.cancel(running) == JobStatus.CANCELLING
    assert state.cancel_requested(running)
    state.fail(running, attempt, JobError("cancelled", ErrorCode.CANCELLED, "prepare"))
    assert state.get(running).status == JobStatus.CANCELLED
    assert state.cancel(running) == JobStatus.CANCELLED


def test_the_last_stage_ends_the_job_with_its_result(
    state: JobState, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    for stage in ("prepare", "cache", "train"):
        finish(state, job_id, begin(state, job_id, stage), stage)
    finish(state, job_id, begin(state, job_id, "publish"), "publish", published="/lamp")
    record = state.get(job_id)
    assert (record.status, record.result) == (JobStatus.SUCCEEDED, {"published": "/lamp"})
    kinds = [event.kind for _, event in state.events(job_id)]
    assert kinds == ["accepted", *["stage_started", "stage_finished"] * 4, "ended"]


def test_events_are_read_on_from_a_position(state: JobState, job_document: dict[str, Any]) -> None:
    job_id = admitted(state, job_document)
    [(position, _)] = state.events(job_id)
    begin(state, job_id, "prepare")
    [(_, event)] = state.events(job_id, after=position)
    assert event == events.StageStarted(stage="prepare", attempt=1, queue="q", worker="w")


def test_jobs_are_listed_newest_first(state: JobState, job_document: dict[str, Any]) -> None:
    ids = [admitted(state, job_document) for _ in range(3)]
    assert [record.id for record in state.newest(2)] == [ids[2], ids[1]]


def test_every_key_has_a_life_time(
    state: JobState, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job_id = admitted(state, job_document)
    finish(state, job_id, begin(state, job_id, "prepare"), "prepare")
    ttls = {key: redis_client.ttl(key) for key in redis_client.scan_iter()}
    assert len(ttls) == 3
    assert all(3590 < ttl <= 3600 for ttl in ttls.values()), ttls
