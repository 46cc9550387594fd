from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.data.read_policy import ReadPolicy
from tasks.stages.prepare import read_policy_of
from tasks.stages.stage_context import StageContext, StageResult
from tasks.stages.submit import submit
from tasks.state.artifacts import JobArtifacts
from tasks.state.job_store import JobStore
from tasks.store import Store
from tests.tasks.stages.test_runner import ScriptedTrainer, run_stage, worker_with


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
