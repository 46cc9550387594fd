"""A worker process that is asked to stop, or loses one of its threads."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.lifecycle.test_remote_control import Worker

PROCESS_FAULTS = Path(__file__).parents[2] / "process_faults"


@pytest.fixture(params=[signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name)
def hangup(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored: a shell's background jobs, such as these tests, ignore some."""
    number: signal.Signals = request.param
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


def test_a_worker_drains_on_hangup(broker_url: str, tmp_path: Path, hangup: signal.Signals) -> None:
    with Worker(broker_url, tmp_path) as worker:
        before = worker.state()
        os.kill(worker.process.pid, signal.SIGUSR1)
        assert worker.state() == before
        os.killpg(worker.process.pid, hangup)  # as a terminal does
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
    with Worker(broker_url, tmp_path, **faults) as worker:
        worker.process.send_signal(signal.SIGUSR2)
        assert worker.process.wait(30) == 1, worker.log.read_text()
        assert f"the thread {thread} ended: this worker drains" in worker.log.read_text()
