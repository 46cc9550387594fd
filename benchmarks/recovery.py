"""Cost of a lost worker, and duplicate runs: training-worker against stock Celery in one run.

    python -m benchmarks.recovery [--kills 5] [--jobs 100] [--report benchmarks/RESULTS.md]

- Time from ``kill -9`` of a host to the job's next start and next training step on another host, in
  visibility timeouts (goal: a median under 1.5), and the lost steps (at most those since the last
  checkpoint). The job is a tiny FLUX LoRA on the CPU. Stock Celery gets a task that sleeps, with
  late acknowledgement and the same visibility timeout.
- Tasks that last longer than the visibility timeout and start twice (goal: none here).
- Redis commands a minute of an idle worker, and of renewing a lease.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import psutil
from celery import Celery
from redis import Redis

from benchmarks.results import write_section
from tasks.events import CheckpointSaved, Progress, StageStarted
from tasks.state.connection import connect
from tests.chaos import cluster as chaos
from tests.chaos.__main__ import prepare
from tests.chaos.cluster import Cluster, signal_all
from tests.integration.conftest import short_job
from tests.waiting import wait_until
from tests.worker.kombu_redis.leased_worker import QUEUES
from worker.local.embedded_broker import EmbeddedBroker
from worker.supervision.process import spawn

# Half of the default. A shorter one would measure the trainer's start instead.
_TIMEOUT_S = 30.0
_PATIENCE_S = 300.0
# kombu's default (it polls every 10 s and restores at each tenth poll), and the shortest.
_DEFAULT_SWEEP, _SHORT_SWEEP = "100", "1"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    lines = [
        "## Recovery",
        "",
        f"`python -m benchmarks.recovery --kills {arguments.kills} --jobs {arguments.jobs}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, visibility timeout "
        f"{_TIMEOUT_S:g} s.",
        "",
    ]
    for line in chain(
        _kills(arguments.kills),
        _stock_kills(max(1, arguments.kills // 2)),
        _duplicates(arguments.jobs),
        _commands(),
    ):
        print(line, flush=True)
        lines.append(f"- {line}")
    if arguments.report:
        write_section(arguments.report, "recovery", "\n".join(lines) + "\n")


def _kills(count: int) -> Iterator[str]:
    chaos.TIMEOUT_S = _TIMEOUT_S
    begun, stepped, lost = [], [], []
    with tempfile.TemporaryDirectory(prefix="recovery-") as name, Cluster(Path(name)) as cluster:
        job = short_job(*prepare(Path(name)))
        job["training"] |= {"max_train_steps": 100_000, "save_every_n_steps": 50}
        job["training"] |= {"max_checkpoints": 2}
        job_id = cluster.client.submit(job)
        for number in range(count):
            _wait_until_it_trains(cluster, job_id, starts=number + 1)
            # In the middle of the periods of lease renewals and checkpoints.
            time.sleep(2.0)
            host = cluster.host_of(job_id)
            checkpoint = _last(cluster, job_id, CheckpointSaved).step
            done = _last(cluster, job_id, Progress).done
            lost.append(max(0, done - checkpoint))
            killed_at = time.time()
            host.kill()
            started, step = _next(cluster, job_id, number + 2)
            begun.append((started - killed_at) / _TIMEOUT_S)
            stepped.append((step - killed_at) / _TIMEOUT_S)
            cluster.heal()
        cluster.client.cancel(job_id, "the benchmark")
    yield (
        f"host killed, training-worker: the stage starts elsewhere after {_spread(begun)} "
        "visibility timeouts, "
        f"its next step follows after {_spread(stepped)}, with the trainer's start "
        f"({count} kills); at most {max(lost)} steps lost, a checkpoint every 50"
    )


def _wait_until_it_trains(cluster: Cluster, job_id: str, starts: int) -> None:
    """Wait until the job trains in its n-th start and has a checkpoint."""
    wait_until(
        lambda: (
            _next(cluster, job_id, starts)[1] > 0
            and bool(cluster.client.state.get(job_id).artifacts.checkpoints)
        ),
        timeout_s=_PATIENCE_S,
        description="the job trains",
        detail=cluster.log,
    )


def _last(cluster: Cluster, job_id: str, kind: Any) -> Any:
    found = [event for _, event in cluster.client.state.events(job_id) if isinstance(event, kind)]
    return found[-1]


def _next(cluster: Cluster, job_id: str, start: int) -> tuple[float, float]:
    """Return the times of the n-th start of training and of its first step, since 1970."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        starts, started = 0, 0.0
        for position, event in cluster.client.state.events(job_id):
            at = int(position.partition("-")[0]) / 1000
            if isinstance(event, StageStarted) and event.stage == "train":
                starts += 1
                started = at
            if starts == start and isinstance(event, Progress) and event.unit == "steps":
                return started, at
        time.sleep(0.05)
    raise AssertionError(f"the job's start {start} makes no step\n{cluster.log()}")


@dataclass(frozen=True)
class _Workers:
    """Workers with a task that sleeps, on a separate broker."""

    client: Redis
    app: Celery
    started: list["subprocess.Popen[bytes]"]
    log_file: Path

    def send(self, seconds: float) -> None:
        self.app.send_task("work", args=(seconds,), queue=QUEUES[0])

    def log(self, word: str) -> list[str]:
        return [line for line in self.log_file.read_text().splitlines() if word in line]

    def wait(self, word: str, times: int) -> None:
        """Wait until N tasks have started, or ended."""
        wait_until(
            lambda: len(self.log(word)) >= times,
            timeout_s=_PATIENCE_S,
            description=f"{times} lines with {word!r}",
        )


@contextmanager
def _workers(count: int, timeout_s: float, *more: str) -> Iterator[_Workers]:
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker(Path(name)) as broker:
        log = Path(name) / "log"
        log.touch()
        command = [
            sys.executable,
            "-m",
            "tests.worker.kombu_redis.leased_worker",
            broker.url,
            str(log),
        ]
        started = [
            spawn(
                [*command, f"w{number}", str(timeout_s), *more],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(count)
        ]
        app = Celery("sender", broker=broker.url, set_as_current=False)
        workers = _Workers(connect(broker.url), app, started, log)
        try:
            workers.wait("is ready", count)
            yield workers
        finally:
            for process in started:
                _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        first = psutil.Process(process.pid)
        signal_all("kill", [first, *first.children(recursive=True)])
    process.wait()


def _stock_kills(count: int) -> Iterator[str]:
    for label, sweep in (
        ("its default restore interval", _DEFAULT_SWEEP),
        ("a restore every second", _SHORT_SWEEP),
    ):
        after = []
        for _ in range(count):
            with _workers(2, _TIMEOUT_S, sweep) as workers:
                workers.send(600)
                workers.wait("begins", 1)
                time.sleep(2.0)
                [line] = workers.log("begins")
                at = time.monotonic()
                _kill(workers.started[int(line[1])])
                workers.wait("begins", 2)
                after.append((time.monotonic() - at) / _TIMEOUT_S)
        yield (
            f"host killed, stock Celery with {label}: the task starts elsewhere after "
            f"{_spread(after)} visibility timeouts ({count} kills), from its first step"
        )


def _duplicates(count: int) -> Iterator[str]:
    timeout_s, lasts_s = 1.5, 4.0
    found = {}
    kinds = {"training-worker": (), "stock Celery, a restore every second": (_SHORT_SWEEP,)}
    for kind, more in kinds.items():
        with _workers(8, timeout_s, *more) as workers:
            for _ in range(count):
                workers.send(lasts_s)
            wait_until(
                partial(_have_ended, workers, count),
                timeout_s=10 * _PATIENCE_S,
                description="all have ended",
            )
            starts = [line.split()[2] for line in workers.log("begins")]
            found[kind] = len(starts) - len(set(starts))
    duplicates = ", ".join(f"{kind} {number}" for kind, number in found.items())
    yield (
        f"starts beyond the first of {count} tasks of {lasts_s:g} s with a visibility timeout of "
        f"{timeout_s:g} s: {duplicates}"
    )


def _have_ended(workers: _Workers, count: int) -> bool:
    return len({line.split()[2] for line in workers.log("ends")}) == count


def _commands() -> Iterator[str]:
    rates = {}
    for kind, more in {"training-worker": (), "stock Celery": (_DEFAULT_SWEEP,)}.items():
        with _workers(1, 60.0, *more) as workers:
            idle = _per_minute(workers.client)
            workers.send(600)
            workers.wait("begins", 1)
            rates[kind] = (idle, _per_minute(workers.client))
    commands = ", ".join(
        f"{kind} {idle:.0f} idle and {busy:.0f} with a job" for kind, (idle, busy) in rates.items()
    )
    yield f"Redis commands a minute of a worker, visibility timeout 60 s: {commands}"


def _per_minute(client: Redis) -> float:
    """Return the commands a minute, without those of this measurement."""

    def calls() -> int:
        stats = cast("dict[str, dict[str, Any]]", client.info("commandstats"))
        return sum(int(stat["calls"]) for name, stat in stats.items() if "info" not in name)

    seconds = 60.0
    before = calls()
    time.sleep(seconds)
    return (calls() - before) * 60 / seconds


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (worst {max(values):.2f})"


if __name__ == "__main__":
    main()
