import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tasks.state.job_store import JobStore
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.tasks.jobs.test_flux_lora import with_values
from tests.worker.cli.conftest import Invoke


def completed(words: str, home: Path, **settings: str) -> list[str]:
    """Return what bash offers for the last word."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRAINING_")}
    env |= {
        "_TRAINING_WORKER_COMPLETE": "complete_bash",
        "COMP_WORDS": f"training-worker {words}",
        "COMP_CWORD": str(len(words.split(" "))),
        "TRAINING_HOME": str(home),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker"],
        env=env | settings,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_this_program(invoke: Invoke, shell: str) -> None:
    script = invoke("completion", shell)
    assert f"_TRAINING_WORKER_COMPLETE=complete_{shell}" in script
    assert "training-worker" in script


def test_commands_options_and_choices_are_offered(tmp_path: Path) -> None:
    assert completed("can", tmp_path) == ["cancel"]
    assert completed("dead-letter re", tmp_path) == ["replay"]
    assert completed("submit --req", tmp_path) == ["--require-worker"]
    assert completed("completion z", tmp_path) == ["zsh"]


def test_jobs_and_workers_are_offered(
    redis_client: Redis, broker_url: str, state: JobStore, tmp_path: Path
) -> None:
    from tasks.stages.submit import submit

    document: dict[str, Any] = with_values()
    job_id = submit({**document, "id": "order-17"}, state, "result").job_id
    info = WorkerInfo(queues=("gpu.40gb",), memory_class=None)
    WorkerHeartbeat(redis_client, "gpu-0@here", info, timedelta(minutes=1)).renew()
    settings = {"TRAINING_BROKER_URL": broker_url}
    assert completed("cancel order", tmp_path, **settings) == [job_id]
    assert completed("drain gpu", tmp_path, **settings) == ["gpu-0@here"]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9/0", "redis://192.0.2.1/0", "no url"])
def test_a_broker_that_does_not_answer_offers_nothing(tmp_path: Path, url: str) -> None:
    assert completed("cancel x", tmp_path, TRAINING_BROKER_URL=url) == []
