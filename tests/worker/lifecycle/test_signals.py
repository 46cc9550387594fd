"""A worker process that is asked to stop, or loses one of its threads."""

import os
import signal
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.worker.lifecycle.test_remote_control import Worker

PROCESS_FAULTS = Path(__file__).parents[2] / "process_faults"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_a_worker_drains_on_hangup(broker_url: str, tmp_path: Path, number: signal.Signals) -> None:
    worker = Worker(broker_url, tmp_path)
    wait_until(
        worker.ready.exists, timeout_s=60, description="it is ready", detail=worker.log.read_text
    )
    before = worker.state()
    os.kill(worker.process.pid, signal.SIGUSR1)
    assert worker.state() == before
    os.killpg(worker.process.pid, number)  # as a terminal does
    assert worker.process.wait(30) == 0, worker.log.read_text()


@pytest.mark.parametrize("thread", ["lease-renewal", "training:redelivery:lease", "health"])
def test_a_worker_that_loses_a_thread_exits_with_an_error(
    broker_url: str, tmp_path: Path, thread: str
) -> None:
    faults = {
        "PYTHONPATH": str(PROCESS_FAULTS),
        "ENDING_THREAD": thread,
        "TRAINING_VISIBILITY_TIMEOUT": "2",
    }
    worker = Worker(broker_url, tmp_path, **faults)
    wait_until(
        worker.ready.exists, timeout_s=60, description="it is ready", detail=worker.log.read_text
    )
    worker.process.send_signal(signal.SIGUSR2)
    assert worker.process.wait(30) == 1, worker.log.read_text()
    assert f"the thread {thread} ended: this worker drains" in worker.log.read_text()
