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

from routing.classes import MemoryClass
from tasks.extras import compiler_problem
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.poison import unreadable
from tests.waiting import wait_until
from worker.kombu_redis.transport import Keys
from worker.local.embedded_broker import find_server
from worker.maintenance.doctor import _check_messages, check_all
from worker.maintenance.finding import Finding
from worker.message_guard import unreadable_messages
from worker.supervision.process import spawn, stop


@pytest.fixture
def settings(tmp_path: Path, broker_url: str, redis_client: Redis) -> Settings:
    return Settings(
        home=tmp_path, broker_url=SecretStr(broker_url), gpus="40gb,24gb", flower_port=0
    )


def finding_of(settings: Settings, subject: str) -> Finding:
    [only] = [finding for finding in check_all(settings) if finding.subject == subject]
    return only


def test_a_healthy_fleet_has_no_error(settings: Settings, redis_client: Redis) -> None:
    info = WorkerInfo(queues=("gpu.40gb",), memory_class=MemoryClass.GB40)
    heartbeat = WorkerHeartbeat(redis_client, "gpu@here", info, timedelta(minutes=1))
    heartbeat.renew()
    findings = check_all(settings)
    assert [finding for finding in findings if finding.level == "error"] == []
    levels = {finding.subject: finding.level for finding in findings}
    for subject in ("broker", "eviction", "persistence", "clock", "workers", "leases", "store"):
        assert levels[subject] == "ok", findings
    assert levels["compiler"] == ("ok" if compiler_problem(cuda=False) is None else "warning")
    assert not list((settings.home_dir / "store").rglob("*probe*"))
    heartbeat.set_quarantine("XID 79")
    assert finding_of(settings, "gpu@here").message == "quarantined: XID 79"


def test_workers_of_several_releases_are_listed(settings: Settings, redis_client: Redis) -> None:
    for name, release in (("a@x", "0.2.0"), ("b@x", "0.1.0"), ("c@x", "0.2.0"), ("d@x", "")):
        info = WorkerInfo(queues=("cpu",), memory_class=None, release=release)
        WorkerHeartbeat(redis_client, name, info, timedelta(minutes=1)).renew()
    found = finding_of(settings, "releases")
    assert found.message == "0.2.0: a@x, c@x; 0.1.0: b@x; unknown: d@x"
    assert "upgrade" in found.remedy


def test_workers_with_a_wrong_clock_are_listed(
    settings: Settings, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = WorkerInfo(queues=("cpu",), memory_class=None)
    right_time = time.time
    with monkeypatch.context() as wrong:
        wrong.setattr(time, "time", lambda: right_time() - 300)
        WorkerHeartbeat(redis_client, "cpu@there", info, timedelta(minutes=1)).renew()
        assert finding_of(settings, "clock").level == "warning"
    assert finding_of(settings, "clock").level == "ok"
    found = finding_of(settings, "clock of cpu@there")
    assert (found.level, found.message) == ("warning", "-300.0 s off the broker's")


def test_unserved_queues_and_lost_messages_are_found(
    settings: Settings, state: JobStore, redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job_id = submit(job_document, state, "result").job_id
    redis_client.delete("cpu")  # its message
    redis_client.rpush("gpu.80gb", '{"headers": {}}')
    redis_client.zadd("unacked_index", {"lost": time.time() - 3600})
    assert finding_of(settings, "workers").level == "error"
    assert finding_of(settings, "gpu.80gb").message == (
        "1 waiting job, and no live worker serves the queue"
    )
    assert finding_of(settings, "leases").message == "1 held by lost workers"
    assert job_id in finding_of(settings, "jobs").message


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[str]:
    """A server that evicts keys and keeps nothing on disk."""
    socket = tmp_path / "careless"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    policy = ["--maxmemory-policy", "allkeys-lru", "--dir", str(tmp_path)]
    process = spawn(
        [str(find_server()), *options, *policy],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"redis+socket://{socket}"
    wait_until(socket.exists, timeout_s=20, description="the socket exists")
    yield url
    stop(process, 5)


def test_a_server_that_evicts_is_an_error(settings: Settings, careless: str) -> None:
    wrong = settings.model_copy(update={"broker_url": SecretStr(careless)})

    def answers() -> bool:
        with connect(careless) as client, suppress(ConnectionError):
            return bool(client.ping())
        return False

    wait_until(answers, timeout_s=20, description="it answers")
    assert finding_of(wrong, "eviction").level == "error"
    assert "noeviction" in finding_of(wrong, "eviction").remedy
    assert finding_of(wrong, "persistence").level == "warning"


@pytest.mark.parametrize(
    ("change", "subject", "problem"),
    [
        ({"broker_url": SecretStr("redis://:hidden@127.0.0.1:9/0")}, "broker", "does not answer"),
        ({"broker_url": None}, "broker", "there is no broker"),
        ({"gpus": "81gb"}, "GPUs", "is not a memory class"),
        ({"store_url": "ftp://nowhere"}, "store", "cannot open the store"),
    ],
)
def test_a_missing_part_is_found_and_others_are_checked(
    settings: Settings, change: dict[str, Any], subject: str, problem: str
) -> None:
    wrong = settings.model_copy(update=change)
    findings = check_all(wrong)
    [only] = [finding for finding in findings if finding.subject == subject]
    assert only.level == "error"
    assert problem in only.message
    assert "hidden" not in str(findings)
    assert any(finding.subject == "scratch" and finding.level != "error" for finding in findings)


@pytest.mark.parametrize("setting", ["scratch_dir", "store_url"])
def test_an_unwritable_folder_is_an_error(settings: Settings, tmp_path: Path, setting: str) -> None:
    file = tmp_path / "no-folder"
    file.touch()
    value: Callable[[], object] = {"scratch_dir": lambda: file, "store_url": file.as_uri}[setting]
    wrong = settings.model_copy(update={setting: value()})
    assert finding_of(wrong, setting.partition("_")[0]).level == "error"


def test_errors_set_the_exit_code(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", sorted(unreadable("gpu.80gb").keys() - {"delivered without end"}))
def test_unreadable_messages_are_found(settings: Settings, redis_client: Redis, name: str) -> None:
    junk = unreadable("gpu.80gb")[name]
    redis_client.lpush("gpu.80gb", junk)
    redis_client.hset("unacked", b"\xff", junk)
    unreadable_messages(redis_client, settings.job_ttl).add(b"junk", "cpu", "is junk")
    [finding] = [
        each
        for each in _check_messages(redis_client, settings, Keys.of({}))
        if each.subject == "unreadable"
    ]
    assert finding.message == "1 in cpu, 1 in gpu.80gb"
    assert redis_client.llen("gpu.80gb") == 1
