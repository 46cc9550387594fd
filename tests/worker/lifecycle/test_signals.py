import os
import signal
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.worker.lifecycle.test_remote_control import Worker


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
