import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from routing.queues import SUBMIT_QUEUE
from tasks.app import make_app
from tasks.captions.requests import CaptionModel, CaptionRequestDocument
from tasks.client import Client
from tasks.contract import record_key
from tasks.errors import SupersededError
from tasks.events import Note
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.artifacts import JobArtifacts
from tasks.state.control import JobControl
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore, StartOutcome
from tasks.state.record import UNSTARTED_FIELD, StageRecord
from tests.poison import unreadable
from tests.waiting import wait_until
from worker.kombu_redis.transport import Keys
from worker.maintenance.reconciler import Reconciler, scan_messages
from worker.message_guard import unreadable_messages

KEYS = Keys.of({})
PATIENCE = timedelta(microseconds=1)


@pytest.fixture
def app(broker_url: str) -> Celery:
    return make_app(Settings(), broker_url)


@pytest.fixture
def control(redis_client: Redis) -> JobControl:
    return JobControl(redis_client, timedelta(hours=1))


@pytest.fixture
def reconciler(redis_client: Redis, control: JobControl, app: Celery) -> Reconciler:
    unreadable = unreadable_messages(redis_client, timedelta(hours=1))
    return Reconciler(redis_client, control, PATIENCE, KEYS, unreadable, app)


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any], redis_client: Redis) -> str:
    """A job whose message was lost."""
    job_id = submit(job_document, state, "the-result").job_id
    redis_client.delete("cpu")
    return job_id


def begin(state: JobStore, job_id: str, stage: str) -> FencingToken:
    start = state.begin(job_id, stage, worker="w", queue="q", tag="t")
    assert start.outcome == StartOutcome.BEGUN
    return start.token


def finish(state: JobStore, job_id: str, stage: str, token: FencingToken, **artifacts: str) -> None:
    record = StageRecord(queue="q", worker="w", attempt=token.attempt, started_at=0.0, seconds=1.0)
    state.finish_stage(job_id, token, stage, record, JobArtifacts.model_validate(artifacts), None)


def test_a_message_that_was_never_sent_is_sent_once(
    reconciler: Reconciler, redis_client: Redis, job_id: str
) -> None:
    assert reconciler.reconcile() == []
    assert reconciler.reconcile() == [job_id]
    assert scan_messages(redis_client, KEYS).stages == {(job_id, "prepare")}
    assert reconciler.reconcile() == []
    assert reconciler.reconcile() == []
    assert '"root_id":"the-result"' in str(redis_client.lpop("cpu"))


def test_a_job_with_a_message_is_not_sent_again(
    reconciler: Reconciler, redis_client: Redis, app: Celery, state: JobStore, job_id: str
) -> None:
    state.send(state.get(job_id))
    assert reconciler.reconcile() == reconciler.reconcile() == []
    with app.connection_for_read() as connection:
        held: Any = connection.default_channel.basic_get("cpu")
        assert scan_messages(redis_client, KEYS).stages == {(job_id, "prepare")}
        assert reconciler.reconcile() == reconciler.reconcile() == []
        connection.default_channel.basic_ack(held.delivery_tag)
        assert reconciler.reconcile() == []
        assert reconciler.reconcile() == [job_id]


def test_lost_message_of_a_caption_run_is_sent_again(
    reconciler: Reconciler, redis_client: Redis, broker_url: str
) -> None:
    client = Client(Settings(), broker_url)
    model = CaptionModel(model="org/model", max_tokens=32)
    request = CaptionRequestDocument(
        tenant="acme", upload="a" * 32, files=None, style="short", queue="cpu", model=model
    )
    run = client.start_captions(request)
    for _ in range(3):
        reconciler.reconcile()
    assert redis_client.llen("cpu") == 1
    redis_client.delete("cpu")
    reconciler.reconcile()
    assert scan_messages(redis_client, KEYS).caption_runs == {run.id}
    redis_client.delete("cpu")
    client.captions.fail(run, "it is damaged")
    reconciler.reconcile()
    assert redis_client.llen("cpu") == 0


def test_a_message_popped_by_a_dying_worker_is_sent_again(
    reconciler: Reconciler,
    redis_client: Redis,
    broker_url: str,
    app: Celery,
    state: JobStore,
    job_id: str,
    tmp_path: Path,
) -> None:
    state.send(state.get(job_id))
    worker = [sys.executable, "-m", "tests.worker.kombu_redis.leased_worker"]
    died = subprocess.run(
        [*worker, broker_url, str(tmp_path / "log"), "w", "60"],
        env={**os.environ, "DIES_ON_DELIVERY": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert scan_messages(redis_client, KEYS).stages == set()
    assert reconciler.reconcile() == []
    assert reconciler.reconcile() == [job_id]
    assert scan_messages(redis_client, KEYS).stages == {(job_id, "prepare")}


@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_messages_of_every_priority_are_found(
    redis_client: Redis, app: Celery, job_id: str, priority: int
) -> None:
    app.send_task("training.train", args=(job_id,), queue="gpu.80gb", priority=priority)
    app.send_task("training.submit", args=({},), queue="cpu")
    assert scan_messages(redis_client, KEYS).stages == {(job_id, "train")}


def test_a_lost_successor_is_sent_to_its_own_queue(
    reconciler: Reconciler, redis_client: Redis, state: JobStore, job_id: str
) -> None:
    finish(state, job_id, "prepare", begin(state, job_id, "prepare"), cache_queue="cpu")
    reconciler.reconcile()
    assert reconciler.reconcile() == [job_id]
    assert scan_messages(redis_client, KEYS).stages == {(job_id, "cache")}
    assert redis_client.llen("cpu") == 1


def test_a_running_stage_without_message_begins_again_and_is_fenced(
    reconciler: Reconciler, redis_client: Redis, state: JobStore, job_id: str
) -> None:
    first = begin(state, job_id, "prepare")
    reconciler.reconcile()
    assert reconciler.reconcile() == [job_id]
    second = begin(state, job_id, "prepare")
    assert second.attempt == first.attempt + 1
    with pytest.raises(SupersededError):
        finish(state, job_id, "prepare", first)
    finish(state, job_id, "prepare", second)


def test_a_job_that_continues_between_two_rounds_is_not_sent(
    reconciler: Reconciler, state: JobStore, job_id: str
) -> None:
    reconciler.reconcile()
    token = begin(state, job_id, "prepare")
    assert reconciler.reconcile() == []
    finish(state, job_id, "prepare", token)
    assert reconciler.reconcile() == []


def test_ended_jobs_are_not_sent(reconciler: Reconciler, control: JobControl, job_id: str) -> None:
    control.cancel(job_id)
    assert reconciler.reconcile() == reconciler.reconcile() == []
    assert control.in_flight() == []


def test_paused_jobs_and_retries_are_not_sent(
    reconciler: Reconciler, control: JobControl, state: JobStore, job_id: str
) -> None:
    control.pause(job_id)
    assert reconciler.reconcile() == reconciler.reconcile() == []
    control.resume(job_id)
    note = Note(level="warning", message="the store is unavailable")
    state.release(job_id, begin(state, job_id, "prepare"), note, delay_s=0.01)
    assert reconciler.reconcile() == reconciler.reconcile() == []
    wait_until(
        lambda: reconciler.send_retries() == [job_id], timeout_s=5, description="the retry is due"
    )
    assert reconciler.send_retries() == []


def test_the_list_of_missing_messages_expires(
    reconciler: Reconciler, redis_client: Redis, job_id: str
) -> None:
    reconciler.reconcile()
    assert 0 < redis_client.ttl("training:reconciler:missing") < 10


@pytest.mark.parametrize("name", sorted(unreadable("gpu.80gb").keys() - {"delivered without end"}))
def test_an_unreadable_message_hides_no_lost_one(
    reconciler: Reconciler, redis_client: Redis, job_id: str, name: str
) -> None:
    junk = unreadable("gpu.80gb")[name]
    redis_client.lpush("gpu.80gb", junk, junk)
    redis_client.hset("unacked", b"\xff", junk)
    assert reconciler.reconcile() == []
    assert reconciler.reconcile() == [job_id]
    assert redis_client.llen("gpu.80gb") == 0
    aside = list(unreadable_messages(redis_client, timedelta(hours=1)))
    assert [(message.queue, message.size) for message in aside] == [("gpu.80gb", len(junk))] * 2


def test_readable_messages_around_an_unreadable_one_stay(
    reconciler: Reconciler, redis_client: Redis, app: Celery, job_id: str
) -> None:
    for number in range(120):
        if number % 3 == 0:
            redis_client.lpush("gpu.80gb", f"junk {number}")
        app.send_task("training.train", args=(f"{job_id}-{number}",), queue="gpu.80gb")
    reconciler.reconcile()
    assert redis_client.llen("gpu.80gb") == 120
    assert len(scan_messages(redis_client, KEYS).stages) == 120


def test_a_queue_that_is_no_list_is_deleted(
    reconciler: Reconciler, redis_client: Redis, job_id: str
) -> None:
    redis_client.sadd("gpu.80gb", "x")
    reconciler.reconcile()
    assert reconciler.reconcile() == [job_id]
    assert not redis_client.exists("gpu.80gb")
    [aside] = unreadable_messages(redis_client, timedelta(hours=1))
    assert aside.reason == "the key was a set, not a list of messages"


def test_a_large_submission_is_left_to_the_workers(
    reconciler: Reconciler, redis_client: Redis, app: Celery
) -> None:
    app.send_task("training.submit", args=({"x": "y" * 100_000},), queue=SUBMIT_QUEUE)
    reconciler.reconcile()
    assert redis_client.llen(SUBMIT_QUEUE) == 1


def test_a_job_whose_messages_kill_workers_ends(
    reconciler: Reconciler, redis_client: Redis, state: JobStore, control: JobControl, job_id: str
) -> None:
    redis_client.hset(record_key(job_id), UNSTARTED_FIELD, 2)
    reconciler.reconcile()
    assert reconciler.reconcile() == [job_id]
    redis_client.delete("cpu")
    redis_client.hset(record_key(job_id), UNSTARTED_FIELD, 3)
    reconciler.reconcile()
    assert reconciler.reconcile() == []
    record = state.get(job_id)
    assert record.status == "failed"
    assert record.error == "every worker that took the message of prepare died before it began"
    assert [dead.id for dead in control.dead_letters()] == [job_id]


def test_a_start_resets_the_count_of_its_messages(
    redis_client: Redis, state: JobStore, job_id: str
) -> None:
    redis_client.hset(record_key(job_id), UNSTARTED_FIELD, 2)
    begin(state, job_id, "prepare")
    assert not redis_client.hexists(record_key(job_id), UNSTARTED_FIELD)
