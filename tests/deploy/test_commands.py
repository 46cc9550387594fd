"""The command lines of the manifests run unchanged, and stop on their supervisors' signal."""

import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from routing.classes import MemoryClass
from tasks.state.workers import live_workers
from tests.deploy.manifests import compose, processes
from tests.deploy.servers import Broker, Started
from tests.deploy.test_settings import COMMANDS

# One process per command line: most services differ only in their GPU.
EACH = list(
    {each.argv: each for each in reversed(processes()) if each.command in COMMANDS}.values()
)
# The console's server exits with the signal that ended it.
ENDS = {"console": (0, -signal.SIGTERM)}


def is_healthy(started: Started) -> bool:
    """Return the result of the health check, sent to the pod's address as Kubernetes does."""
    _, *command = compose()["services"][started.process.command]["healthcheck"]["test"]
    command[-1] = re.sub(r"127.0.0.1/\d+", f"127.0.0.1/{started.port}", command[-1])
    subprocess.run(command, check=True)
    [path] = re.findall(r"GET (/\S+)", command[-1]) or ["/metrics"]
    url = f"http://127.0.0.1:{started.port}{path}"
    request = urllib.request.Request(url, headers={"Host": "10.0.0.5:8080"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return bool(response.status == 200)


def is_alive(ready_file: Path | None) -> bool:
    """Return the result of a worker's health check."""
    [command] = compose()["services"]["cpu"]["healthcheck"]["test"][1:]
    moved = command.replace("/tmp/ready", str(ready_file))
    return subprocess.run(["sh", "-c", moved], check=False).returncode == 0


def test_each_process_starts_is_healthy_and_stops(
    broker: Broker, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    # One GPU per worker, so that their names differ.
    classes = iter(MemoryClass)
    runs = []
    for number, process in enumerate(EACH):
        gpus = str(next(classes)) if "auto" in process.argv else "40gb"
        runs.append(Started(process, broker, tmp_path / str(number), TRAINING_GPUS=gpus))
    try:
        for run in runs:
            run.start()
        for run in runs:
            run.wait_until_ready()
        workers = [run for run in runs if run.ready_file is not None]
        assert len(live_workers(broker.client("console"))) == len(workers) == 5
        for run in workers:
            assert is_alive(run.ready_file)
            os.utime(str(run.ready_file), (0, 0))
            assert not is_alive(run.ready_file)
        for run in runs:
            if run.ready_file is None:
                assert is_healthy(run)
        for run in runs:
            run.ask_to_stop()
        for run in runs:
            with subtests.test(run.process.where):
                assert run.end() in ENDS.get(run.process.command, (0,)), run.log()
                assert "Traceback" not in run.log()
        assert not live_workers(broker.client("console"))
    finally:
        for run in runs:
            run.kill()
