from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from tasks.errors import ErrorCode, InvalidStateError, JobError, UnknownJobError
from tasks.events import Artifact, CheckpointSaved, JobEnded, Note
from tasks.stages.submit import submit
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.control import JobControl
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore, StartOutcome
from tasks.state.record import JobStatus, StageRecord

SAVED = CheckpointSaved(
    step=10,
    state_key="jobs/x/10/state",
    weights=Artifact(name="lamp.safetensors", key="jobs/x/10/lamp", sha256="0" * 64, size=9),
)


@pytest.fixture
def control(redis_client: Redis) -> JobControl:
    return JobControl(redis_client, timedelta(hours=1))


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document, state, "result").job_id


def begin(
    state: JobStore, job_id: str, stage: str = "prepare"
) -> tuple[StartOutcome, FencingToken]:
    return state.begin(job_id, stage, worker="w", queue="q", tag="t")[:2]


def finish(state: JobStore, job_id: str, stage: str) -> None:
    outcome, token = begin(state, job_id, stage)
    assert outcome == StartOutcome.BEGUN
    record = StageRecord(queue="q", worker="w", attempt=token.attempt, started_at=0, seconds=1.5)
    state.finish_stage(job_id, token, stage, record, NO_ARTIFACTS, None)


def fail(state: JobStore, job_id: str, code: ErrorCode) -> None:
    state.fail(job_id, begin(state, job_id)[1], JobError("broken", code, "prepare"))


def test_cancel_ends_waiting_jobs_and_stops_running_ones(
    control: JobControl, state: JobStore, job_id: str, job_document: dict[str, Any]
) -> None:
    running = submit(job_document, state, "result").job_id
    token = begin(state, running)[1]
    assert control.cancel(job_id) == JobStatus.CANCELLED
    assert begin(state, job_id)[0] == StartOutcome.ENDED
    assert control.cancel(running) == JobStatus.CANCELLING
    assert state.requested_state(running, token) == JobStatus.CANCELLING
    state.fail(running, token, JobError("cancelled", ErrorCode.CANCELLED, "prepare"))
    assert state.get(running).status == JobStatus.CANCELLED
    assert control.cancel(running) == JobStatus.CANCELLED
    for ended in (job_id, running):
        assert state.get(ended).error_code == ErrorCode.CANCELLED
        [event] = [e for _, e in state.events(ended) if isinstance(e, JobEnded)]
        assert event.status == "cancelled"


def test_cancel_with_save_publishes_the_last_checkpoint(
    control: JobControl, state: JobStore, job_id: str
) -> None:
    for stage in ("prepare", "cache"):
        finish(state, job_id, stage)
    token = begin(state, job_id, "train")[1]
    note = Note(level="info", message="a checkpoint")
    state.write(job_id, token, [note], JobArtifacts(checkpoints=(SAVED,)))
    state.release(job_id, token, note)
    assert control.cancel(job_id, save=True) == JobStatus.CANCELLING
    record = state.get(job_id)
    assert (record.stage, record.pending_queue, record.save_on_cancel) == ("publish", "cpu", True)
    assert begin(state, job_id, "publish")[0] == StartOutcome.BEGUN


def test_cancel_with_save_needs_a_checkpoint(control: JobControl, job_id: str) -> None:
    assert control.cancel(job_id, save=True) == JobStatus.CANCELLED


def test_a_waiting_job_is_paused_and_resumed(
    control: JobControl, state: JobStore, job_id: str
) -> None:
    finish(state, job_id, "prepare")
    assert control.pause(job_id) == JobStatus.PAUSED
    assert begin(state, job_id, "cache")[0] == StartOutcome.PAUSED
    assert control.pause(job_id) == JobStatus.PAUSED
    assert control.resume(job_id)
    assert state.get(job_id).stage == "cache"
    with pytest.raises(InvalidStateError, match="is running, not paused"):
        control.resume(job_id)
    finish(state, job_id, "cache")


def test_a_stage_that_ends_while_pausing_pauses_its_successor(
    control: JobControl, state: JobStore, job_id: str
) -> None:
    token = begin(state, job_id)[1]
    assert control.pause(job_id) == JobStatus.PAUSING
    record = StageRecord(queue="q", worker="w", attempt=token.attempt, started_at=0, seconds=1.5)
    state.finish_stage(job_id, token, "prepare", record, NO_ARTIFACTS, None)
    assert begin(state, job_id, "cache")[0] == StartOutcome.PAUSED
    assert state.get(job_id).status == JobStatus.PAUSED


def test_an_ended_job_cannot_be_paused(control: JobControl, state: JobStore, job_id: str) -> None:
    fail(state, job_id, ErrorCode.INVALID_DATASET)
    with pytest.raises(InvalidStateError, match="is failed, not waiting or running"):
        control.pause(job_id)


def test_resuming_a_pausing_job_lets_it_run(
    control: JobControl, state: JobStore, job_id: str
) -> None:
    token = begin(state, job_id)[1]
    control.pause(job_id)
    assert not control.resume(job_id)
    assert state.requested_state(job_id, token) == JobStatus.RUNNING


def test_infrastructure_failures_can_be_replayed(
    control: JobControl, state: JobStore, job_id: str, job_document: dict[str, Any]
) -> None:
    invalid = submit(job_document, state, "result").job_id
    fail(state, invalid, ErrorCode.INVALID_DATASET)
    fail(state, job_id, ErrorCode.STORE)
    assert [record.id for record in control.dead_letters()] == [job_id]
    assert control.in_flight() == []
    control.replay(job_id)
    record = state.get(job_id)
    assert (record.status, record.stage, record.error) == (JobStatus.RUNNING, "prepare", None)
    assert control.dead_letters() == []
    assert [record.id for record in control.in_flight()] == [job_id]
    finish(state, job_id, "prepare")


def test_a_discarded_dead_letter_keeps_its_record(
    control: JobControl, state: JobStore, job_id: str
) -> None:
    with pytest.raises(InvalidStateError, match="is not in the dead-letter queue"):
        control.discard(job_id)
    fail(state, job_id, ErrorCode.INTERNAL)
    control.discard(job_id)
    assert control.dead_letters() == []
    assert state.get(job_id).status == JobStatus.FAILED


def test_a_job_begun_too_often_is_dead_lettered(
    control: JobControl, state: JobStore, job_id: str
) -> None:
    for _ in range(5):
        begin(state, job_id)
    assert begin(state, job_id)[0] == StartOutcome.EXHAUSTED
    assert [record.id for record in control.dead_letters()] == [job_id]
    control.replay(job_id)
    assert begin(state, job_id)[0] == StartOutcome.BEGUN


def test_a_due_job_is_returned_once(control: JobControl, state: JobStore, job_id: str) -> None:
    note = Note(level="info", message="later")
    state.release(job_id, begin(state, job_id)[1], note, delay_s=-1)
    assert [record.id for record in control.take_due()] == [job_id]
    assert control.take_due() == []
    assert state.get(job_id).due_at is None
    state.release(job_id, begin(state, job_id)[1], note, delay_s=100)
    assert control.take_due() == []


def test_an_unknown_job_cannot_be_changed(control: JobControl) -> None:
    calls: list[Callable[[str], object]] = [control.cancel, control.pause, control.resume]
    for call in [*calls, control.replay]:
        with pytest.raises(UnknownJobError):
            call("unknown")


def test_an_expired_job_is_not_in_flight(
    control: JobControl, redis_client: Redis, job_id: str
) -> None:
    redis_client.delete(f"training:job:{job_id}")
    assert control.in_flight() == []
    assert redis_client.exists("training:jobs:in_flight") == 0
