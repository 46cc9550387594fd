from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore
from redis import Redis

from tasks.app import make_app
from tasks.client import Client
from tasks.contract import SUBMIT
from tasks.errors import ErrorCode, JobError
from tasks.settings.settings import Settings
from tasks.stages.celery_tasks import make_worker_app
from tasks.stages.results import UnstoredResults
from tasks.stages.worker_context import WorkerServices
from tasks.state.artifacts import NO_ARTIFACTS
from tasks.state.control import JobControl
from tasks.state.job_store import FollowOutcome, JobStore
from tasks.state.record import StageRecord

RESULT = {"published": "p", "manifest": "m", "sha256": "0", "files": ["f"]}


@pytest.fixture
def app(broker_url: str) -> Celery:
    """A client that knows the broker only."""
    return make_app(Settings(), broker_url)


@pytest.fixture
def unstored(redis_client: Redis, app: Celery) -> UnstoredResults:
    return UnstoredResults(redis_client, app)


@pytest.fixture
def send(
    state: JobStore, broker_url: str, job_document: dict[str, Any]
) -> Callable[[str], dict[str, Any] | None]:
    """Runs the task of a message with the job, and returns its answer."""
    worker: Any = SimpleNamespace(state=state, services=WorkerServices())
    task = make_worker_app(Settings(), broker_url, lambda: worker).tasks[SUBMIT]
    document = {**job_document, "id": "mine"}

    def send(result_id: str) -> dict[str, Any] | None:
        task.push_request(id=result_id)
        try:
            answer: dict[str, Any] = task.run(document)
        except Ignore:
            return None
        finally:
            task.pop_request()
        return answer

    return send


def begin(state: JobStore) -> Any:
    return state.begin("mine", "prepare", worker="w", queue="cpu", tag="t")


def succeed(state: JobStore) -> None:
    record = StageRecord(queue="cpu", worker="w", attempt=1, started_at=0)
    state.finish_stage("mine", begin(state).token, "prepare", record, NO_ARTIFACTS, RESULT)


def fail(state: JobStore) -> None:
    state.fail("mine", begin(state).token, JobError("cat.png", ErrorCode.INTERNAL, "prepare"))


def test_every_result_gets_the_jobs_result(
    send: Callable[[str], Any], state: JobStore, unstored: UnstoredResults, app: Celery
) -> None:
    assert [send("first"), send("first"), send("second"), send("second")] == [None] * 4
    begin(state)
    assert send("third") is None
    succeed(state)
    assert unstored.store() == ["mine"]
    expected = {"job_id": "mine", "stage": "publish", **RESULT}
    for result_id in ("first", "second", "third"):
        assert app.AsyncResult(result_id).get(timeout=5) == expected
    assert send("fourth") == send("first") == expected
    assert unstored.store() == []


def raised(app: Celery, result_id: str) -> tuple[object, ...]:
    with pytest.raises(JobError) as caught:
        app.AsyncResult(result_id).get(timeout=5)
    return caught.value.args


def cancel(state: JobStore) -> None:
    JobControl(state._redis, timedelta(hours=1)).cancel("mine")


def exhaust_starts(state: JobStore) -> None:
    for _ in range(6):
        begin(state)


def exhaust_messages(state: JobStore) -> None:
    state._redis.hset("training:job:mine", "unstarted", 3)
    assert not JobControl(state._redis, timedelta(hours=1)).requeue("mine", 0, "prepare")


@pytest.mark.parametrize(
    ("end", "message", "code"),
    [
        (fail, "cat.png", "internal"),
        (cancel, "job mine was cancelled", "cancelled"),
        (exhaust_starts, "was started 5 times", "trainer_failed"),
        (exhaust_messages, "every worker that took the message", "internal"),
    ],
)
def test_every_result_raises_the_jobs_error(
    send: Callable[[str], Any],
    state: JobStore,
    unstored: UnstoredResults,
    app: Celery,
    end: Callable[[JobStore], None],
    message: str,
    code: str,
) -> None:
    send("first")
    send("second")
    end(state)
    assert unstored.store() == ["mine"]
    assert raised(app, "first") == raised(app, "second")
    assert message in str(raised(app, "first")[0])
    assert raised(app, "first")[1] == code
    with pytest.raises(JobError, match=message):
        send("third")


def test_a_cancel_answers_every_result_at_once(
    send: Callable[[str], Any], app: Celery, broker_url: str
) -> None:
    send("first")
    send("second")
    Client(Settings(), broker_url).cancel("mine", actor="test")
    assert raised(app, "second")[1] == "cancelled"


def test_a_replayed_job_stores_its_last_end(
    send: Callable[[str], Any], state: JobStore, unstored: UnstoredResults, app: Celery
) -> None:
    send("first")
    fail(state)
    JobControl(state._redis, timedelta(hours=1)).replay("mine")
    assert unstored.store() == []
    send("second")
    fail(state)
    unstored.store()
    JobControl(state._redis, timedelta(hours=1)).replay("mine")
    succeed(state)
    unstored.store()
    for result_id in ("first", "second"):
        assert app.AsyncResult(result_id).get(timeout=5)["sha256"] == "0"


def test_a_result_that_comes_before_a_replay_follows_it(
    send: Callable[[str], Any], state: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("first")
    fail(state)
    follow = state.follow

    def followed_late(job_id: str, result_id: str) -> FollowOutcome:
        outcome = follow(job_id, result_id)
        if outcome == FollowOutcome.ENDED:
            JobControl(state._redis, timedelta(hours=1)).replay(job_id)
        return outcome

    monkeypatch.setattr(state, "follow", followed_late)
    assert send("second") is None
    assert state.summary("mine").other_result_ids == ("second",)


def test_a_record_that_cannot_be_read_delays_no_result(
    send: Callable[[str], Any], state: JobStore, unstored: UnstoredResults
) -> None:
    state._redis.set("training:job:odd", "no hash", ex=60)
    state._redis.zadd("training:jobs:results", {"odd": 1.0})
    send("first")
    fail(state)
    assert unstored.store() == ["mine"]


def test_the_seventeenth_result_gets_the_job_id_only(
    send: Callable[[str], Any], state: JobStore
) -> None:
    assert [send(f"r{n}") for n in range(16)] == [None] * 16
    assert send("r16") == {"job_id": "mine"}
    assert send("r15") is None
    assert len(state.summary("mine").other_result_ids) == 15
