"""The command lines of the manifests run as they stand, and end as their supervisors end them."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from routing.classes import MemoryClass
from tasks.state.workers import live_workers
from tests.deploy.manifests import compose, processes
from tests.deploy.servers import Broker, Started
from tests.deploy.test_settings import COMMANDS

# One of each command line: most services differ in nothing but their GPU.
EACH = list({it.argv: it for it in reversed(processes()) if it.command in COMMANDS}.values())
# The server of the console passes on the signal that has ended it.
ENDS = {"console": (0, -signal.SIGTERM)}


def answers(it: Started) -> bool:
    """Whether its health check is content, asked as Kubernetes does: by the pod's address."""
    [probe] = compose()["services"][it.process.command]["healthcheck"]["test"][-1:]
    [path] = re.findall(r"http://127\.0\.0\.1:\d+(/[\w/]+)", probe)
    url = f"http://127.0.0.1:{it.port}{path}"
    request = urllib.request.Request(url, headers={"Host": "10.0.0.5:8080"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return bool(answer.status == 200)


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
            if it.ready_file is None:
                assert answers(it)
        for it in started:
            it.ask_to_stop()
        for it in started:
            with subtests.test(it.process.where):
                assert it.end() in ENDS.get(it.process.command, (0,)), it.log()
                assert "Traceback" not in it.log()
        assert not live_workers(broker.client("console"))
    finally:
        for it in started:
            it.kill()
