"""A worker's parent process: seconds until it is ready, and resident memory while idle.

    python -P benchmarks/worker_process.py [--report FILE]

Runs our worker and a bare Celery worker with the same options alternately, five times each, on an
embedded broker, and prints medians and their ratio. Goals: ready in under 3 s, under 120 MB.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.results import parser_of, report_result
from worker.local.embedded_broker import EmbeddedBroker
from worker.supervision.process import spawn, stop

_RUNS = 5
_BARE = """
import sys, warnings
from pathlib import Path
from celery import Celery
from celery.signals import worker_ready
warnings.simplefilter("ignore")
app = Celery("bare", broker=sys.argv[1], backend=sys.argv[1])
app.conf.update(accept_content=["json"], worker_concurrency=1, worker_prefetch_multiplier=1)
worker_ready.connect(lambda **_: Path(sys.argv[2]).touch(), weak=False)
app.Worker(queues=["bare"], without_mingle=True, without_gossip=True, quiet=True).start()
"""


def main() -> None:
    """Measure and print the medians."""
    arguments = parser_of(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(Path(folder)) as broker:
        env = {**os.environ, "TRAINING_BROKER_URL": broker.url, "TRAINING_HOME": folder}

        def own_worker(ready: Path) -> list[str]:
            worker = [sys.executable, "-P", "-m", "worker", "worker", "--queues", "cpu"]
            return [*worker, "--ready-file", str(ready)]

        def bare(ready: Path) -> list[str]:
            return [sys.executable, "-P", "-c", _BARE, broker.url, str(ready)]

        measured: dict[str, list[tuple[float, float]]] = {"training-worker": [], "bare Celery": []}
        for _ in range(_RUNS):
            measured["training-worker"].append(_measure(own_worker, env, Path(folder) / "ready"))
            measured["bare Celery"].append(_measure(bare, env, Path(folder) / "ready"))
    lines = []
    for unit, place in (("s to ready", 0), ("MB resident", 1)):
        medians = {
            name: statistics.median(run[place] for run in runs) for name, runs in measured.items()
        }
        shown = ", ".join(f"{name} {value:.2f}" for name, value in medians.items())
        lines.append(
            f"{unit}: {shown}, ratio {medians['training-worker'] / medians['bare Celery']:.2f}"
        )
    command = "python -P benchmarks/worker_process.py"
    report_result(
        arguments.report, "Worker process", command, "ready in under 3 s, under 120 MB", lines
    )


def _measure(
    command: Callable[[Path], list[str]], env: dict[str, str], ready: Path
) -> tuple[float, float]:
    """Return the seconds until a worker is ready, and its resident MB (10^6 bytes) then."""
    ready.unlink(missing_ok=True)
    started = time.perf_counter()
    process = spawn(command(ready), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError(f"the worker ended with {process.returncode}")
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        parent = psutil.Process(process.pid)
        if any("libtorch" in mapping.path for mapping in parent.memory_maps()):
            raise RuntimeError("torch is loaded in the worker's parent process")
        return seconds, parent.memory_info().rss / 1e6
    finally:
        stop(process, grace_s=10)


if __name__ == "__main__":
    main()
