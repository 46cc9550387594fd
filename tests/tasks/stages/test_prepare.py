import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from redis import Redis

from tasks.data.read_policy import ReadPolicy
from tasks.stages.outcomes import Cancelled
from tasks.stages.prepare import prepare, read_policy_of
from tasks.stages.stage_context import StageContext, StageResult
from tasks.stages.submit import submit
from tasks.state.artifacts import JobArtifacts
from tasks.state.control import JobControl
from tasks.state.job_store import JobStore
from tasks.store import Store
from tests.tasks.data.download.test_slow_servers import PIECES, SlowServer
from tests.tasks.stages.test_runner import ScriptedTrainer, outcome_of, run_stage, worker_with


@pytest.mark.parametrize(
    ("reads", "roots"),
    [(None, ("/",)), ((), ()), (("/open", "s3://b/x"), ("/open",))],
)
def test_a_tenants_job_reads_less_than_its_worker(
    state: JobStore,
    tmp_path: Path,
    job_document: dict[str, Any],
    reads: tuple[str, ...] | None,
    roots: tuple[str, ...],
) -> None:
    seen = []

    def look(context: StageContext) -> StageResult:
        seen.append(read_policy_of(context))
        return StageResult("looked")

    job_id, _, _ = submit(job_document, state, "result", JobArtifacts(read_roots=reads))
    store = Store((tmp_path / "store").as_uri())
    rules = ReadPolicy(roots=("/",), hosts=frozenset({"intern.example"}))
    worker = replace(worker_with(state, store, tmp_path, ScriptedTrainer()), read_policy=rules)
    run_stage("prepare", look, job_id, worker)
    [access] = seen
    assert access.roots == roots
    assert bool(access.hosts) == (reads is None)


def test_a_cancelled_job_leaves_a_slow_server_within_seconds(
    state: JobStore,
    redis_client: Redis,
    tmp_path: Path,
    job_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.stages.prepare.check_base_model", lambda _: [])
    server = SlowServer(PIECES["a trickle of the body"])
    archive = {"type": "ARCHIVE", "archive": f"http://{server.host}/a.zip"}
    job_document["training"]["data_loader"]["dataset"] = archive
    job_id = submit(job_document, state, "result").job_id
    store = Store((tmp_path / "store").as_uri())
    rules = ReadPolicy(hosts=frozenset({server.host}))
    worker = replace(worker_with(state, store, tmp_path, ScriptedTrainer()), read_policy=rules)
    cancelled_s: list[float] = []

    def cancel_once_it_downloads() -> None:
        server.connected.wait()
        JobControl(redis_client, timedelta(hours=1)).cancel(job_id)
        cancelled_s.append(time.monotonic())

    canceller = Thread(target=cancel_once_it_downloads)
    canceller.start()
    assert isinstance(outcome_of("prepare", prepare, job_id, worker), Cancelled)
    canceller.join()
    assert time.monotonic() - cancelled_s[0] < 5
    server.close()
