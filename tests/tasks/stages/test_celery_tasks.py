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
from tasks.stages.celery_tasks import make_worker_app
from tasks.stages.outcomes import (
    Cancelled,
    DeferredToNewerWorker,
    Discarded,
    Done,
    Failed,
    Paused,
    Requeued,
    Rerouted,
    RetriedAfterDelay,
    StageOutcome,
)
from tasks.stages.task_requests import StageRequest, SubmitRequest
from tasks.stages.worker_context import WorkerContext, WorkerServices
from tasks.state.scripts import Candidates
from tasks.state.stage_message import stage_message, task_label

# Nothing is sent here; the result backend must exist all the same.
BROKER_URL = "redis://127.0.0.1:1/0"
URL = "https://images.example/cat.zip?signature=secret"
UNNAMED = f"job={job_id_of('the-message')} name=lora tenant=default"


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
        (
            {"id": "mine", "name": "cat", "tenant": "acme", "archive": URL},
            "job=mine name=cat tenant=acme",
        ),
        ({"archive": URL}, UNNAMED),
        ({"id": URL, "name": URL, "tenant": f"a {URL}"}, UNNAMED),
        ({"id": "secret" * 20, "name": "secret" * 20, "tenant": ["secret"]}, UNNAMED),
        (URL, UNNAMED),
        ([URL], UNNAMED),
    ],
    ids=["all", "no id", "addresses", "long texts", "no mapping", "a list"],
)
def test_a_submit_request_shows_id_name_and_tenant_only(document: Any, shown: str) -> None:
    request = request_of(document)
    assert request.argsrepr == shown
    assert "secret" not in repr((request.info(), request.info(safe=False), request.kwargsrepr))
    assert request.args == (document,)


@pytest.mark.parametrize(
    ("gpu", "shown"),
    [
        (None, "job=j name=cat tenant=acme queue=gpu.40gb"),
        ("NVIDIA L40S", "job=j name=cat tenant=acme queue=gpu.40gb gpu=NVIDIA L40S"),
    ],
)
def test_a_stage_request_shows_job_queue_and_gpu(gpu: str | None, shown: str) -> None:
    app = make_worker_app(Settings(), BROKER_URL, unused, gpu=gpu)
    label = task_label("j", "cat", "acme")
    document = json.loads(stage_message("j", "result", "train", "gpu.40gb", label=label).text)
    message = Message(  # type: ignore[no-untyped-call]
        body=document["body"],
        headers=document["headers"],
        content_type="application/json",
        delivery_info=document["properties"]["delivery_info"],
    )
    request = StageRequest(message, app=app, task=app.tasks["training.train"], hostname="w")
    assert request.argsrepr == request.info(safe=False)["args"] == shown


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
        (Paused(actor=None), Ignore),
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
