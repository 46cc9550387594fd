import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.exceptions import Ignore, Reject, Retry
from kombu.message import Message

from tasks.app import make_app
from tasks.contract import STAGES, SUBMIT, job_id_of, task_name
from tasks.errors import CancelledJobError, JobError, TrainerError
from tasks.settings.settings import Settings
from tasks.stages.celery_tasks import SubmitRequest, make_worker_app
from tasks.stages.outcomes import (
    Cancelled,
    DeferredToNewerWorker,
    Discarded,
    Done,
    Failed,
    Requeued,
    Rerouted,
    RetriedAfterDelay,
    StageOutcome,
)
from tasks.stages.worker_context import WorkerContext, WorkerServices
from tasks.state.scripts import Candidates

# Nothing is sent here; the result backend must exist all the same.
BROKER_URL = "redis://127.0.0.1:1/0"
URL = "https://images.example/cat.zip?signature=secret"


def unused() -> WorkerContext:
    raise AssertionError("no task runs here")


def request_of(*args: Any) -> SubmitRequest:
    app = make_worker_app(Settings(), BROKER_URL, unused)
    task = app.amqp.as_task_v2("the-message", SUBMIT, args=args)
    assert "secret" in task.headers["argsrepr"]
    message = Message(  # type: ignore[no-untyped-call]
        body=task.body, headers=task.headers, properties=task.properties, content_type=None
    )
    return SubmitRequest(
        message, app=app, task=app.tasks[SUBMIT], body=task.body, decoded=True, hostname="w"
    )


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ({"id": "mine", "archive": URL}, "mine"),
        ({"archive": URL}, job_id_of("the-message")),
        ({"id": URL}, job_id_of("the-message")),
        ({"id": "secret" * 20}, job_id_of("the-message")),
        (URL, job_id_of("the-message")),
        ([URL], job_id_of("the-message")),
    ],
    ids=["own id", "no id", "an address as id", "a long id", "no mapping", "a list"],
)
def test_a_submit_request_shows_the_job_id_only(document: Any, shown: str) -> None:
    request = request_of(document)
    assert request.argsrepr == f"({shown!r},)"
    assert "secret" not in repr((request.info(), request.info(safe=False), request.kwargsrepr))
    assert request.args == (document,)


def test_each_app_runs_its_tasks_with_its_own_worker() -> None:
    asked: list[str] = []

    def first() -> WorkerContext:
        asked.append("first")
        raise KeyError

    def second() -> WorkerContext:
        asked.append("second")
        raise KeyError

    apps = [make_worker_app(Settings(), BROKER_URL, worker) for worker in (first, second)]
    for name in (SUBMIT, *map(task_name, STAGES)):
        for app in apps:
            app.tasks[name].apply(args=("job",))
    assert asked == ["first", "second"] * 5


@pytest.mark.parametrize("name", ["x" * 5_000_000, {str(key): 1 for key in range(300_000)}])
def test_a_refused_job_keeps_a_small_result(name: Any) -> None:
    worker = cast("WorkerContext", SimpleNamespace(state=None))
    app = make_worker_app(Settings(), BROKER_URL, lambda: worker)
    for training in ({}, {"type": "FLUX_LORA"}):
        result = app.tasks[SUBMIT].apply(args=({"name": name, "training": training},))
        assert isinstance(result.result, JobError)
        # Redis keeps both, and the traceback has the message again.
        assert len(json.dumps([result.result.args, result.traceback])) < 10_000


def test_a_sender_has_no_tasks_beside_a_worker() -> None:
    worker = make_worker_app(Settings(), BROKER_URL, unused)
    assert SUBMIT in worker.tasks
    sender = make_app(Settings(), BROKER_URL)
    assert [name for name in sender.tasks if not name.startswith("celery.")] == []


def test_celery_limits_no_retries() -> None:
    app = make_worker_app(Settings(), BROKER_URL, unused)
    assert {app.tasks[name].max_retries for name in (SUBMIT, *map(task_name, STAGES))} == {None}


@pytest.mark.parametrize(
    ("outcome", "raised"),
    [
        (Requeued("the worker stops"), Reject),
        (Rerouted("gpu.80gb", "out of memory"), Retry),
        (RetriedAfterDelay("the store is unavailable"), Ignore),
        (Discarded("duplicate"), Ignore),
        (DeferredToNewerWorker("version 2"), Ignore),
        (Failed(TrainerError("it crashed", "train")), JobError),
        (Cancelled(CancelledJobError("job", "train")), JobError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_each_outcome_has_one_meaning_to_celery(
    outcome: StageOutcome, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatched: list[bool] = []

    class Services(WorkerServices):
        def dispatch_waiting(self, candidates: Candidates | None = None) -> None:
            dispatched.append(True)

    context: Any = SimpleNamespace(services=Services())
    monkeypatch.setattr("tasks.stages.celery_tasks.run_stage", lambda *_: outcome)
    task = make_worker_app(Settings(), BROKER_URL, lambda: context).tasks[task_name("train")]
    with pytest.raises(raised) as caught:
        task.run("job")
    assert dispatched == [True]
    if isinstance(caught.value, Reject):
        assert caught.value.requeue
    if raised is JobError:
        assert type(caught.value) is JobError


@pytest.mark.parametrize("next_queue", ["cpu", None])
def test_a_job_that_continues_frees_no_capacity(
    next_queue: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatched: list[bool] = []

    class Services(WorkerServices):
        def dispatch_waiting(self, candidates: Candidates | None = None) -> None:
            dispatched.append(True)

    context: Any = SimpleNamespace(services=Services())
    done = Done({"job_id": "job"}, next_queue)
    monkeypatch.setattr("tasks.stages.celery_tasks.run_stage", lambda *_: done)
    task = make_worker_app(Settings(), BROKER_URL, lambda: context).tasks[task_name("train")]
    assert task.run("job") == {"job_id": "job"}
    assert dispatched == ([] if next_queue else [True])
