"""A plain Celery client sends the same job again after it has lost its connection."""

from typing import Any

from celery import Celery

from tests.integration.fleets import PATIENCE_S, Fleet


def client(fleet: Fleet) -> Any:
    return Celery(broker=fleet.broker_url, backend=fleet.broker_url, set_as_current=False)


def test_both_results_get_the_whole_result(fleet: Fleet, job: dict[str, Any]) -> None:
    job["id"] = "sent-twice"
    lost, again = client(fleet), client(fleet)
    first = lost.send_task("training.submit", args=[job], queue="submit")
    lost.close()
    second = again.send_task("training.submit", args=[job], queue="submit")
    result = second.get(timeout=PATIENCE_S)
    assert result["job_id"] == "sent-twice"
    assert result["files"]
    third = again.send_task("training.submit", args=[job], queue="submit")
    assert third.get(timeout=PATIENCE_S) == result
    assert again.AsyncResult(first.id).get(timeout=PATIENCE_S) == result
    assert len([event for event in fleet.events("sent-twice") if event.kind == "accepted"]) == 1
