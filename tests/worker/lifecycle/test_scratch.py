import os
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tasks.events import Note
from tasks.stages.submit import submit
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore
from worker.lifecycle.scratch import ScratchCleanup
from worker.periodic import ThreadWatch


@pytest.fixture
def running(state: JobStore, job_document: dict[str, Any]) -> tuple[str, FencingToken]:
    job_id = submit(job_document, state, "result").job_id
    _, token, *_ = state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t")
    return job_id, token


def cleaned(folder: Path, client: Redis) -> set[str]:
    ScratchCleanup(folder, client, ThreadWatch()).remove_dead()
    return {path.name for path in folder.iterdir()}


def test_folders_of_dead_starts_are_removed(
    tmp_path: Path, redis_client: Redis, running: tuple[str, FencingToken], state: JobStore
) -> None:
    job_id, token = running
    newest = f"{job_id}-{token.start_id}"
    older = f"{job_id}-{FencingToken(0, 'lost').start_id}"
    for name in (newest, older):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint").touch()
    assert cleaned(tmp_path, redis_client) == {newest}
    state.release(job_id, token, Note(level="info", message="released"))
    assert cleaned(tmp_path, redis_client) == set()


def test_what_is_not_a_dead_starts_folder_stays(
    tmp_path: Path, redis_client: Redis, running: tuple[str, FencingToken]
) -> None:
    dead = FencingToken(0, "lost").start_id
    (tmp_path / "elsewhere").mkdir()
    kept = {"downloads", "elsewhere", "notes-1", f"unknown-{dead}", f"link-{dead}", f"file-{dead}"}
    for name in ("downloads", "notes-1", f"unknown-{dead}", f"forgotten-{dead}"):
        (tmp_path / name).mkdir()
    (tmp_path / f"link-{dead}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"file-{dead}").touch()
    long_ago = time.time() - 2 * 86400
    os.utime(tmp_path / f"forgotten-{dead}", (long_ago, long_ago))
    assert cleaned(tmp_path, redis_client) == kept


def test_no_scratch_folder_is_no_problem(tmp_path: Path, redis_client: Redis) -> None:
    assert ScratchCleanup(tmp_path / "none", redis_client, ThreadWatch()).remove_dead() == []
