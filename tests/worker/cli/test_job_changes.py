"""Jobs are deleted and renamed by the command line."""

import json
from datetime import timedelta
from typing import Any

import pytest

from tasks.errors import ErrorCode, JobError, UnknownJobError
from tasks.stages.submit import submit
from tasks.state.deletions import Deletions
from tasks.state.job_store import JobStore
from tests.worker.cli.conftest import Invoke


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    """A job that has failed."""
    job_id = submit(job_document | {"labels": {"shelf": "3", "old": ""}}, state, "result").job_id
    token = state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t")[1]
    state.fail(job_id, token, JobError("disk full", ErrorCode.STORE, "prepare"))
    return job_id


def test_a_job_is_deleted_without_a_question(
    invoke: Invoke, state: JobStore, broker_url: str, job_id: str
) -> None:
    shown = invoke("delete", job_id, "--yes", TRAINING_BROKER_URL=broker_url)
    assert shown == f"job {job_id} is deleted\n"
    with pytest.raises(UnknownJobError):
        state.get(job_id)
    # The files of the deleted job wait for the maintenance.
    deletions = Deletions(state._redis, timedelta(hours=1))
    assert deletions.due(10) == [job_id]
    # Again, as a script that is repeated does.
    arguments = ("delete", job_id, "--yes", "--json")
    document = json.loads(invoke(*arguments, TRAINING_BROKER_URL=broker_url))
    assert document == [{"job_id": job_id, "action": "deleted"}]


def test_a_deletion_asks(invoke: Invoke, state: JobStore, broker_url: str, job_id: str) -> None:
    shown = invoke("delete", job_id, code=2, TRAINING_BROKER_URL=broker_url)
    assert "add --yes" in shown
    assert state.get(job_id)


def test_a_running_job_is_not_deleted(
    invoke: Invoke, state: JobStore, broker_url: str, job_document: dict[str, Any]
) -> None:
    waiting = submit(job_document, state, "result").job_id
    shown = invoke("delete", waiting, "--yes", code=18, TRAINING_BROKER_URL=broker_url)
    assert "cancel it before you delete it" in shown
    assert state.get(waiting)


def test_a_job_is_renamed(invoke: Invoke, state: JobStore, broker_url: str, job_id: str) -> None:
    arguments = ("edit", job_id, "--title", "[red]The lamp", "--label", "shelf=4", "--label", "old")
    assert "title, labels" in invoke(*arguments, TRAINING_BROKER_URL=broker_url)
    record = state.get(job_id)
    assert (record.title, record.labels, record.name) == ("[red]The lamp", {"shelf": "4"}, "lamp")
    assert "[red]" in invoke("list", TRAINING_BROKER_URL=broker_url)
    assert "give --title" in invoke("edit", job_id, code=2, TRAINING_BROKER_URL=broker_url)
    wrong = invoke("edit", job_id, "--title", "x" * 101, code=3, TRAINING_BROKER_URL=broker_url)
    assert "title" in wrong
