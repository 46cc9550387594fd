from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.data.access import Access
from tasks.prepare import access_of
from tasks.records import READS
from tasks.stage import StageContext, StageResult
from tasks.state import JobState
from tasks.store import Store
from tasks.submit import admit
from tests.tasks.test_stage import ScriptedTrainer, run_stage, runtime_with


@pytest.mark.parametrize(
    ("refs", "roots"),
    [(None, ("/",)), ({READS: ""}, ()), ({READS: "/open\ns3://b/x"}, ("/open",))],
)
def test_a_tenants_job_reads_less_than_its_worker_may(
    state: JobState,
    tmp_path: Path,
    job_document: dict[str, Any],
    refs: dict[str, str] | None,
    roots: tuple[str, ...],
) -> None:
    seen = []

    def look(context: StageContext) -> StageResult:
        seen.append(access_of(context))
        return StageResult("looked")

    job_id, _, _ = admit(job_document, state, "result", refs)
    store = Store((tmp_path / "store").as_uri())
    rules = Access(roots=("/",), hosts=frozenset({"intern.example"}))
    runtime = replace(runtime_with(state, store, tmp_path, ScriptedTrainer()), access=rules)
    run_stage("prepare", look, job_id, runtime)
    [access] = seen
    assert access.roots == roots
    assert bool(access.hosts) == (refs is None)
