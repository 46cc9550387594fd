import json
import re
from typing import Any

import pytest

from tasks.errors import ErrorCode, JobError
from tasks.stages.submit import submit
from tasks.state.job_store import JobStore
from tasks.state.record import JobStatus
from tests.worker.cli.conftest import Invoke
from worker.cli.reports.output import stdout


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    """A job in the dead-letter queue."""
    job_id = submit(job_document, state, "result").job_id
    token = state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t")[1]
    state.fail(job_id, token, JobError("disk full", ErrorCode.STORE, "prepare"))
    return job_id


def test_list_shows_error_and_history(invoke: Invoke, broker_url: str, job_id: str) -> None:
    assert "store: disk full" in invoke("dead-letter", "list", TRAINING_BROKER_URL=broker_url)
    document = invoke("dead-letter", "list", "--json", TRAINING_BROKER_URL=broker_url)
    [job] = json.loads(document)
    assert job["id"] == job_id
    kinds = [event["kind"] for event in job["history"]]
    assert (kinds[0], kinds[-1]) == ("accepted", "ended")


def test_replay_resumes_the_job(
    invoke: Invoke, state: JobStore, broker_url: str, job_id: str
) -> None:
    shown = invoke("dead-letter", "replay", "--all", TRAINING_BROKER_URL=broker_url)
    assert shown == f"job {job_id} is replayed\n"
    assert state.get(job_id).status == JobStatus.RUNNING
    assert json.loads(invoke("dead-letter", "list", "--json", TRAINING_BROKER_URL=broker_url)) == []


def test_an_ended_job_cannot_be_cancelled(
    invoke: Invoke, state: JobStore, broker_url: str, job_id: str
) -> None:
    shown = invoke("cancel", job_id, code=18, TRAINING_BROKER_URL=broker_url)
    assert shown == f"error: job {job_id} is failed; there is nothing to cancel\n"
    assert state.get(job_id).status == JobStatus.FAILED


def test_a_narrow_list_has_what_jobs_wait_for_below(
    invoke: Invoke,
    state: JobStore,
    broker_url: str,
    job_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = submit(job_document, state, "result").job_id
    waits = "no live worker serves cpu: none takes jobs"
    wide = invoke("list", TRAINING_BROKER_URL=broker_url)
    assert re.search(rf"{job_id}.*{waits}", wide)
    monkeypatch.setattr(stdout, "_width", 80)
    narrow = invoke("list", TRAINING_BROKER_URL=broker_url)
    assert narrow.splitlines()[-1] == f"{job_id} waits: {waits}"
    assert "FLUX_LORA" in narrow


def test_an_empty_queue_is_a_sentence(
    invoke: Invoke, state: JobStore, broker_url: str, job_id: str
) -> None:
    invoke("dead-letter", "discard", job_id, TRAINING_BROKER_URL=broker_url)
    shown = invoke("dead-letter", "list", TRAINING_BROKER_URL=broker_url)
    assert shown == "no job is in the dead-letter queue\n"


def test_discard_keeps_the_record(
    invoke: Invoke, state: JobStore, broker_url: str, job_id: str
) -> None:
    arguments = ("dead-letter", "discard", job_id, "--json")
    shown = json.loads(invoke(*arguments, TRAINING_BROKER_URL=broker_url))
    assert shown == {"job_id": job_id, "action": "discarded"}
    assert state.get(job_id).status == JobStatus.FAILED
    error = json.loads(invoke(*arguments, code=18, TRAINING_BROKER_URL=broker_url))["error"]
    assert "is not in the dead-letter queue" in error["message"]
