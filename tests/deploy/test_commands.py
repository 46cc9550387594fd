"""The command lines of the manifests run as they stand, and end as their supervisors end them."""

import subprocess
import sys
from pathlib import Path

import pytest

from routing.classes import MemoryClass
from tasks.presence import live_workers
from tests.deploy.manifests import processes
from tests.deploy.servers import Broker, Started
from tests.deploy.test_settings import COMMANDS

# One of each command line: most services differ in nothing but their GPU.
EACH = list({it.argv: it for it in processes() if it.command in COMMANDS}.values())


def test_each_starts_is_well_and_drains(
    broker: Broker, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    # A GPU each, so that workers of one machine have names of their own.
    classes = iter(MemoryClass)
    started = []
    for number, process in enumerate(EACH):
        gpus = str(next(classes)) if "auto" in process.argv else "40gb"
        started.append(Started(process, broker, tmp_path / str(number), TRAINING_GPUS=gpus))
    try:
        for it in started:
            it.start()
        for it in started:
            it.wait_until_ready()
        workers = [it for it in started if it.ready_file is not None]
        assert len(live_workers(broker.client("console"))) == len(workers) == 5
        for it in workers:
            check = ["health", str(it.ready_file)]
            command = [sys.executable, "-P", "-m", "worker", *check]
            assert subprocess.run(command, env=it.env, check=False).returncode == 0
        for it in started:
            it.ask_to_stop()
        for it in started:
            with subtests.test(it.process.where):
                assert it.end() == 0, it.log()
                assert "Traceback" not in it.log()
        assert not live_workers(broker.client("console"))
    finally:
        for it in started:
            it.kill()
