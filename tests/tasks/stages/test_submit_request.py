from typing import Any

import pytest
from kombu.message import Message

from tasks.app import make_app
from tasks.contract import SUBMIT, job_id_of
from tasks.settings.settings import Settings
from tasks.stages.submit_request import SubmitRequest
from tasks.stages.worker_context import WorkerContext

URL = "https://images.example/cat.zip?signature=secret"


def unused() -> WorkerContext:
    raise AssertionError("no task runs here")


def request_of(*args: Any) -> SubmitRequest:
    app = make_app(Settings(), "redis://127.0.0.1:1/0", unused)
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
def test_a_worker_tells_which_job_was_submitted_and_nothing_else_of_it(
    document: Any, shown: str
) -> None:
    request = request_of(document)
    assert request.argsrepr == f"({shown!r},)"
    assert "secret" not in repr((request.info(), request.info(safe=False), request.kwargsrepr))
    assert request.args == (document,)
