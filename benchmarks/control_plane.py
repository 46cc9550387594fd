"""Cost of the control plane: this project's chain beside bare Celery, with many jobs and workers.

    python -m benchmarks.control_plane [--chains N] [--jobs N] [--workers N] [--report FILE]

- Throughput and latency of jobs with empty stages, relative to a bare Celery chain of four empty
  tasks, with the same two worker processes and queues, alternating within one run. Goal: a ratio of
  0.6 or more. A third side is Celery with task events, which Flower needs and our workers send.
- Redis memory and commands per job, and commands of the maintenance, as the number of queued jobs
  of 20 tenants grows in front of a fleet of emulated workers. Goal: all constant.
- Microseconds of a decision: the next tenant, and the route of a job. Goal: under 50.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import psutil
from pydantic import SecretStr
from redis import Redis

from benchmarks.emulated_fleet import EmulatedFleet
from benchmarks.noop_worker import GPU_QUEUE, bare_app, bare_chain
from benchmarks.results import write_section
from routing.fair_share import TenantShare, next_tenant
from routing.queues import CPU_QUEUE
from tasks.app import make_app
from tasks.client import Client
from tasks.contract import STAGES
from tasks.jobs.job import parse_job
from tasks.settings.settings import Settings
from tasks.state.connection import connect
from tasks.state.workers import live_workers
from tests.waiting import wait_until
from worker.cli.client import client_of
from worker.kombu_redis.redelivery import Redelivery
from worker.kombu_redis.transport import Keys
from worker.local.embedded_broker import EmbeddedBroker
from worker.maintenance.exporter import FleetCollector
from worker.maintenance.reconciler import Reconciler
from worker.maintenance.webhooks import Webhooks
from worker.message_guard import MessageGuard, unreadable_messages
from worker.supervision.process import spawn, stop

# Kinds of ``benchmarks.noop_worker``. The others are compared with the first.
_OWN = "training-worker"
_SIDES = (_OWN, "bare", "bare-events")
T = TypeVar("T")


class Goals(NamedTuple):
    """What to reach beside a kind."""

    ratio: float
    added: str


_GOALS = {"bare": Goals(0.6, ""), "bare-events": Goals(0.9, ", goal 0.5")}
_ONE_BY_ONE = 10
_PATIENCE_S = 600.0
_TENANTS = 20
# Runs of each maintenance job a minute, with the default visibility timeout.
_A_MINUTE = {
    "publish_fleet": 12,
    "dispatch": 12,
    "retries": 12,
    "expiry": 12,
    "redelivery": 12,
    "webhooks": 12,
    "exporter": 4,
    "reconcile": 2,
}
# The number of queued jobs that are run to their end.
_RUN_JOBS = 1000


class Burst(NamedTuple):
    """What a burst of chains took.

    Attributes:
        rate: Chains per second.
        workers_ms: Processor milliseconds of the workers per chain.
        broker_ms: Of the broker.
        sender_ms: Of this process, which submits and waits.
    """

    rate: float
    workers_ms: float
    broker_ms: float
    sender_ms: float

    @property
    def cpu_ms(self) -> float:
        """All processor milliseconds per chain."""
        return self.workers_ms + self.broker_ms + self.sender_ms


@dataclass
class Side:
    """One side of the comparison.

    Attributes:
        submit: Submits a number of chains, and returns the ids of their results.
        redis: Connection to its broker.
        workers: Their main processes.
    """

    submit: Callable[[int], list[str]]
    redis: Redis
    workers: list[psutil.Process]

    def burst(self, chains: int) -> Burst:
        """Measure from the first submission to the last end."""
        began_s, began_cpu_ms = time.perf_counter(), self._cpu_ms()
        for result_id in self.submit(chains):
            self._wait(result_id)
        seconds, cpu_ms = time.perf_counter() - began_s, self._cpu_ms()
        parts = [(now - then) / chains for now, then in zip(cpu_ms, began_cpu_ms, strict=True)]
        return Burst(chains / seconds, *parts)

    def latency_s(self) -> float:
        """Return the seconds from a chain's submission to its end on an idle fleet."""
        began = time.perf_counter()
        self._wait(*self.submit(1))
        return time.perf_counter() - began

    def _cpu_ms(self) -> tuple[float, float, float]:
        """Return the processor time of the workers, the broker and this process."""
        children = [child for worker in self.workers for child in worker.children(recursive=True)]
        times = [process.cpu_times() for process in [*self.workers, *children]]
        workers_ms = sum(used.user + used.system for used in times) * 1e3
        return float(workers_ms), _cpu_ms(self.redis), time.process_time() * 1e3

    def _wait(self, result_id: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while '"SUCCESS"' not in str(self.redis.get(f"celery-task-meta-{result_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no end of {result_id}")
            time.sleep(0.002)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_plane")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    lines = [
        "## Control plane",
        "",
        f"`python -m benchmarks.control_plane --chains {arguments.chains} --jobs {arguments.jobs} "
        f"--workers {arguments.workers}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores.",
        "",
    ]
    for line in chain(
        _beside_bare_celery(arguments.chains, arguments.rounds),
        _decisions(),
        _depths(arguments.jobs, arguments.workers),
    ):
        print(line, flush=True)
        lines.append(f"- {line}")
    if arguments.report:
        write_section(arguments.report, "control plane", "\n".join(lines) + "\n")


def job(tenant: str = "default") -> dict[str, Any]:
    """Return a job for a 40 GB GPU, whose stages do nothing."""
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
    training = {"model": "/model", "data_loader": {"dataset": dataset}}
    return {"preset": "flux_lora_1x40gb", "tenant": tenant, "training": training}


def _beside_bare_celery(chains: int, rounds: int) -> Iterator[str]:
    with ExitStack() as stack:
        sides = [stack.enter_context(running_side(kind))[0] for kind in _SIDES]
        for side in sides:
            side.burst(10)  # warms up
        bursts = [_in_turns(sides, lambda side: side.burst(chains), n) for n in range(rounds)]
        times = [_in_turns(sides, Side.latency_s, n) for n in range(rounds * _ONE_BY_ONE)]
    columns = dict(zip(_SIDES, zip(*bursts, strict=True), strict=True))
    for place, name in enumerate(_SIDES[1:], 1):
        ratios = [row[0].rate / row[place].rate for row in bursts]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        cpu = statistics.median(row[place].cpu_ms / row[0].cpu_ms for row in bursts)
        added = statistics.median(row[0] - row[place] for row in times) / len(STAGES)
        goals = _GOALS[name]
        yield (
            f"beside {name}, bursts of {chains} chains: {_median(columns[_OWN], 'rate'):.0f} and "
            f"{_median(columns[name], 'rate'):.0f} a second; ratio {ratio:.2f}, half of {rounds} "
            f"rounds from {low:.2f} to {high:.2f}, by processor time {cpu:.2f} "
            f"(goal {goals.ratio}); one by one, {added * 1e3:.1f} ms added to each step "
            f"(median of {len(times)}{goals.added})"
        )
    used = [
        f"{name} {_median(column, 'cpu_ms'):.1f} (workers {_median(column, 'workers_ms'):.1f}, "
        f"broker {_median(column, 'broker_ms'):.1f}, sender {_median(column, 'sender_ms'):.1f})"
        for name, column in columns.items()
    ]
    yield f"processor milliseconds of a chain: {'; '.join(used)}"
    latencies = [
        f"{name} {statistics.median(column) * 1e3:.0f} and "
        f"{statistics.quantiles(column, n=20)[-1] * 1e3:.0f}"
        for name, column in zip(_SIDES, zip(*times, strict=True), strict=True)
    ]
    yield f"milliseconds of a chain by itself, median and 95 %: {', '.join(latencies)}"


def _median(bursts: Sequence[Burst], name: str) -> float:
    return float(statistics.median(getattr(burst, name) for burst in bursts))


def _in_turns(sides: list[Side], measure: Callable[[Side], T], number: int) -> list[T]:
    """Measure each side; every second round runs in reverse order."""
    order = sides if number % 2 else sides[::-1]
    measures = {id(side): measure(side) for side in order}
    return [measures[id(side)] for side in sides]


@contextmanager
def running_side(kind: str) -> Iterator[tuple[Side, str]]:
    """Run a broker, a worker of the CPU queue and one of a 40 GB GPU; yield its URL too."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind}-")))
        broker = stack.enter_context(EmbeddedBroker(folder))
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
        env |= {"TRAINING_BROKER_URL": broker.url, "TRAINING_HOME": str(folder)}
        readies, workers = [], []
        for name, queue in {"cpu": CPU_QUEUE, "gpu": GPU_QUEUE}.items():
            readies.append(folder / f"{name}.ready")
            command = [sys.executable, "-m", "benchmarks.noop_worker", kind, name, queue]
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            worker = spawn([*command, str(readies[-1])], env=env, stdout=log, stderr=log)
            stack.callback(stop, worker, 10)
            workers.append(psutil.Process(worker.pid))
        wait_until(
            lambda: all(path.exists() for path in readies),
            timeout_s=60,
            description=f"the workers of {kind} are ready",
            detail=lambda: "".join(path.read_text() for path in folder.glob("*.log")),
        )
        submit = _own(broker.url) if kind == _OWN else _bare(broker.url)
        yield Side(submit, connect(broker.url), workers), broker.url


def _own(url: str) -> Callable[[int], list[str]]:
    client = client_of(Settings(broker_url=SecretStr(url)))
    redis = connect(url)

    def submit(count: int) -> list[str]:
        ids = [client.submit(job()) for _ in range(count)]
        return [str(redis.hget(f"training:job:{job_id}", "result_id")) for job_id in ids]

    return submit


def _bare(url: str) -> Callable[[int], list[str]]:
    app = bare_app(url)
    return lambda count: [str(bare_chain(app, "a-job").apply_async().id) for _ in range(count)]


def _decisions() -> Iterator[str]:
    decisions = []
    for count in (8, 100, 1000):
        tenants = [f"tenant-{number}" for number in range(count)]
        # The slowest case: all tenants have jobs in flight.
        in_flight = {tenant: 1 + number % 7 for number, tenant in enumerate(tenants)}
        shares = {tenant: TenantShare(2.0, 50) for tenant in tenants[::10]}
        alike = _microseconds(lambda: next_tenant(tenants, in_flight, {}))  # noqa: B023
        unlike = _microseconds(lambda: next_tenant(tenants, in_flight, shares))  # noqa: B023
        decisions.append(f"{count} tenants {alike:.1f} ({unlike:.1f} with shares)")
    routed = _microseconds(parse_job(job()).route)
    yield (
        f"microseconds of a decision (goal 50): next_tenant, all with jobs in flight, "
        f"{', '.join(decisions)}; route {routed:.1f}"
    )


def _microseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=200, repeat=7)) / 200 * 1e6


def _depths(most: int, workers: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker(Path(name)) as broker:
        settings = Settings(broker_url=SecretStr(broker.url), home=Path(name))
        client, redis = client_of(settings), connect(broker.url)
        fleet = EmulatedFleet(client, settings, workers, Path(name))
        for depth in (most // 10, most * 3 // 10, most):
            redis.flushall()
            fleet.present()
            yield _at_depth(depth, settings, client, redis, fleet)


def _at_depth(
    depth: int, settings: Settings, client: Client, redis: Redis, fleet: EmulatedFleet
) -> str:
    duties = _duties(settings, client, redis)
    duties["publish_fleet"]()
    memory, commands = _memory(redis), _commands(redis)
    for number in range(depth):
        client.submit(job(f"tenant-{number % _TENANTS}"))
    kib = (_memory(redis) - memory) / depth / 1024
    submitted = (_commands(redis) - commands) / depth
    first, begun, sent = fleet.done, _commands(redis), _bytes_sent(redis)
    stages = min(depth, _RUN_JOBS) * len(STAGES)
    in_flight = 0
    with fleet.working():
        while fleet.done - first < stages:
            time.sleep(0.5)
            in_flight = max(in_flight, sum(client.tenant_queues.in_flight().values()))
    jobs = (fleet.done - first) / len(STAGES)
    ran, kib_sent = (_commands(redis) - begun) / jobs, (_bytes_sent(redis) - sent) / jobs / 1024
    left, a_minute, costs = len(client.control.in_flight()), 0, []
    for name, duty in duties.items():
        commands, broker_ms, began = _commands(redis), _cpu_ms(redis), time.process_time()
        duty()
        ms = (time.process_time() - began) * 1e3
        took = _commands(redis) - commands
        a_minute += took * _A_MINUTE[name]
        costs.append(f"{name} {took} and {ms:.0f} ms (broker {_cpu_ms(redis) - broker_ms:.0f})")
    return (
        f"{depth} jobs queued: {kib:.1f} KiB of Redis memory a job; commands a job {submitted:.0f} "
        f"to submit and {ran:.0f} to run, with {kib_sent:.0f} KiB read and at most {in_flight} "
        f"in flight; commands and processor time of a round of the maintenance (goal under 1000 "
        f"ms), with {left} in flight: {', '.join(costs)}; {a_minute} commands a minute"
    )


def _duties(settings: Settings, client: Client, redis: Redis) -> dict[str, Callable[[], object]]:
    """Return one round of each maintenance job, and a scrape of the exporter."""
    hour = timedelta(hours=1)
    keys, unreadable = Keys.of({}), unreadable_messages(redis, hour)
    app = make_app(settings, client.broker_url)
    reconciler = Reconciler(redis, client.control, hour, keys, unreadable, app)
    redelivery = Redelivery(redis, hour, keys, unreadable, MessageGuard(redis).read)
    webhooks = Webhooks(redis, client.state, None, [])
    collector = FleetCollector(redis, hour)
    return {
        "publish_fleet": lambda: client.tenant_queues.publish_fleet(
            live_workers(redis).values(), settings.shares_by_tenant(), hour
        ),
        "dispatch": client.tenant_queues.dispatch,
        "retries": reconciler.send_retries,
        "expiry": client.control.renew_keys,
        "redelivery": redelivery.redeliver_expired,
        "webhooks": webhooks.deliver_due,
        "exporter": lambda: list(collector.collect()),
        "reconcile": reconciler.reconcile,
    }


def _cpu_ms(redis: Redis) -> float:
    cpu = redis.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * 1e3


def _memory(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def _bytes_sent(redis: Redis) -> int:
    return int(redis.info("stats")["total_net_output_bytes"])


def _commands(redis: Redis) -> int:
    """Count the commands so far, also in scripts, but not INFO and the polls of idle workers."""
    stats = cast("dict[str, dict[str, Any]]", redis.info("commandstats"))
    left_out = {"cmdstat_info", "cmdstat_brpop"}
    return sum(int(stat["calls"]) for name, stat in stats.items() if name not in left_out)


if __name__ == "__main__":
    main()
