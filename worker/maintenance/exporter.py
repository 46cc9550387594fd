"""The fleet's metrics for Prometheus: counters from Redis, and gauges that are read when asked.

Reads only the broker, so one exporter is enough for a fleet, and several do no harm.
"""

import json
import logging
import platform
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import timedelta
from http.server import ThreadingHTTPServer
from importlib.metadata import version
from typing import Any, cast

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis import Redis, RedisError

from routing.queues import ALL_QUEUES
from tasks import metrics
from tasks.cache.index import PackIndex
from tasks.cache.plan import KINDS
from tasks.hosts import is_allowed_host
from tasks.metrics import METRICS, OTHER_TENANTS, class_label
from tasks.process.signals import drain_on_hangup
from tasks.state.counters import Counters
from tasks.state.fleet_snapshot import FleetSnapshot, Place, read_fleet
from tasks.state.tenants.usage import UsageStore
from tasks.state.workers import WorkerInfo
from tasks.store import pack_prefix

logger = logging.getLogger(__name__)

Values = Iterable[tuple[tuple[object, ...], float]]
_STATES = ("idle", "busy", "quarantined")
# All other tenants share one series: senders choose tenants' names freely.
MAX_TENANTS = 50
# Reading the names of all packs is the only cost that grows with a fleet's age.
_CACHE_INTERVAL_S = 60.0
_IDLE_TIMEOUT_S = 10
_WORKERS_WANTED = "/workers-wanted"


class FleetCollector(Collector):
    """Reads a fleet's metrics.

    Args:
        client: A connection to the broker that decodes responses.
        ttl: How long a job is kept.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis = client
        self._counters = Counters(client, ttl)
        self._index = PackIndex(client, ttl, ttl)
        self._errors = 0
        self._cache: tuple[float, dict[str, Values]] = (-_CACHE_INTERVAL_S, {})
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Describe nothing: the registry compares names only with other collectors."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; those of the broker have no values while it is unavailable."""
        began, is_up = time.perf_counter(), True
        counts, values = dict[str, int](), dict[str, Values]()
        with self._lock:
            try:
                counts, values = self._counters.read(), dict(self._read())
            except RedisError as error:
                is_up = False
                self._errors += 1
                logger.warning("cannot read the broker: %s", error)
            values |= _one(metrics.BROKER_UP, is_up)
            values |= _one(metrics.EXPORTER_ERRORS, self._errors)
            versions = version("training-worker"), platform.python_version()
            values[metrics.BUILD.name] = [(versions, 1)]
            values |= _one(metrics.EXPORTER_SECONDS, time.perf_counter() - began)
        for metric in METRICS:
            yield _family(metric, counts, values.get(metric.name, ()), is_up=is_up)

    def _read(self) -> Iterator[tuple[str, Values]]:
        fleet = read_fleet(self._redis)
        yield from _queues(fleet).items()
        yield from _workers(fleet).items()
        yield from self._packs().items()
        yield from _tenant_usage(UsageStore(self._redis)).items()
        yield from _broker(self._redis).items()
        for metric, value in (
            (metrics.JOBS_IN_FLIGHT, fleet.in_flight),
            (metrics.RETRY_JOBS, fleet.due),
            (metrics.DEAD_LETTER_JOBS, fleet.dead_letters),
            (metrics.WEBHOOKS_WAITING, fleet.pending_webhooks),
            (metrics.JOB_WEBHOOK_TENANTS, fleet.webhook_tenants),
        ):
            yield from _one(metric, value).items()

    def _packs(self) -> dict[str, Values]:
        """Return the sizes of the cache, at most a minute old."""
        read_at, values = self._cache
        if time.monotonic() - read_at < _CACHE_INTERVAL_S:
            return values
        packs = self._index.packs()
        by_kind = {
            kind: [p for p in packs if p.key.startswith(pack_prefix(kind))] for kind in KINDS
        }
        values = {
            metrics.CACHE_BYTES.name: [((k,), sum(p.size for p in by_kind[k])) for k in KINDS],
            metrics.CACHE_PACKS.name: [((k,), len(by_kind[k])) for k in KINDS],
        }
        self._cache = time.monotonic(), values
        return values


def serve(
    client: Redis, ttl: timedelta, address: str, port: int, host_names: Collection[str] = ()
) -> None:
    """Answer scrapes until the process gets SIGTERM.

    Args:
        client: A connection to the broker that decodes responses.
        ttl: How long a job is kept.
        address: The address to listen on.
        port: The port to listen on.
        host_names: The host names to answer to, besides ``localhost`` and IP addresses.

    Raises:
        OSError: The address is in use or not of this machine.
    """
    registry = CollectorRegistry()
    registry.register(FleetCollector(client, ttl))
    server = make_server(registry, client, address, port, host_names)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    drain_on_hangup()
    server.serve_forever()
    server.server_close()


def make_server(
    registry: CollectorRegistry,
    client: Redis,
    address: str,
    port: int,
    host_names: Collection[str],
) -> ThreadingHTTPServer:
    """Return a server of a registry's metrics, which listens already.

    ``/workers-wanted`` is for autoscalers without Prometheus: the workers of each queue that would
    have work, as JSON.

    Raises:
        OSError: The address is in use or not of this machine.
    """

    class Handler(MetricsHandler):
        # Of a connection that sends nothing.
        timeout = _IDLE_TIMEOUT_S

        def do_GET(self) -> None:  # noqa: N802
            if not is_allowed_host(self.headers.get("Host", ""), {*host_names, address}):
                self.send_error(421, "add this host name to TRAINING_ALLOWED_HOSTS")
            elif self.path == _WORKERS_WANTED:
                self._send_workers_wanted()
            else:
                super().do_GET()

        def _send_workers_wanted(self) -> None:
            try:
                body = json.dumps(read_fleet(client).workers_wanted()).encode()
            except RedisError:
                self.send_error(503, "the broker is unavailable")
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    Handler.registry = registry

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    return Server((address, port), Handler)


def _one(metric: metrics.Metric, value: float) -> dict[str, Values]:
    return {metric.name: [((), value)]}


def _queues(fleet: FleetSnapshot) -> dict[str, Values]:
    """Return what waits and runs, for every queue, also for an empty one."""
    series = _tenant_series(fleet)
    waiting: Counter[Place] = Counter({(queue, metrics.UNREAD): 0 for queue in ALL_QUEUES})
    tenant_waits: dict[Place, float] = {}
    waits = dict.fromkeys(ALL_QUEUES, 0.0)
    for (queue, tenant), count in fleet.waiting.items():
        place, seconds = (queue, series.get(tenant, OTHER_TENANTS)), fleet.waits_s((queue, tenant))
        waiting[place] += count
        tenant_waits[place] = max(tenant_waits.get(place, 0.0), seconds)
        waits[queue] = max(waits[queue], seconds)
    running = Counter(stage.queue for stage in fleet.running)
    return {
        metrics.QUEUE_JOBS.name: waiting.items(),
        metrics.OLDEST_WAIT.name: [((queue,), wait) for queue, wait in waits.items()],
        metrics.TENANT_OLDEST_WAIT.name: [
            (place, wait) for place, wait in tenant_waits.items() if place[1] != metrics.UNREAD
        ],
        metrics.JOBS_RUNNING.name: [((queue,), running[queue]) for queue in ALL_QUEUES],
        metrics.WORKERS_WANTED.name: [
            ((queue,), count) for queue, count in fleet.workers_wanted().items()
        ],
    }


def _tenant_series(fleet: FleetSnapshot) -> dict[str, str]:
    """Return the tenants that have their own series: those with the most waiting jobs."""
    jobs: Counter[str] = Counter()
    for (_, tenant), count in fleet.waiting.items():
        jobs[tenant] += count
    del jobs[metrics.UNREAD]
    largest = sorted(jobs, key=lambda tenant: (-jobs[tenant], tenant))[:MAX_TENANTS]
    return {tenant: tenant for tenant in (metrics.UNREAD, *largest)}


def _tenant_usage(store: UsageStore) -> dict[str, Values]:
    """Return the GPU seconds of this month, of the tenants that have their own series."""
    seconds = {usage.tenant: usage.gpu_hours * 3600 for usage in store.all(store.this_month())}
    largest = sorted(seconds, key=lambda tenant: (-seconds[tenant], tenant))
    values = {tenant: seconds[tenant] for tenant in largest[:MAX_TENANTS]}
    if len(largest) > MAX_TENANTS:
        values[OTHER_TENANTS] = sum(seconds[tenant] for tenant in largest[MAX_TENANTS:])
    return {metrics.TENANT_GPU_SECONDS.name: [((name,), value) for name, value in values.items()]}


def _workers(fleet: FleetSnapshot) -> dict[str, Values]:
    busy = {stage.worker for stage in fleet.running}
    states: Counter[tuple[str, str]] = Counter()
    # A worker of a newer version may serve queues that this one does not know.
    serving = Counter(dict.fromkeys(ALL_QUEUES, 0))
    gpus: dict[str, list[tuple[tuple[object, ...], float]]] = {}
    for name, worker in fleet.workers.items():
        label, is_quarantined = class_label(worker.memory_class), worker.quarantined is not None
        states.update({(label, state): 0 for state in _STATES})
        state = "quarantined" if is_quarantined else "busy" if name in busy else "idle"
        states[label, state] += 1
        for queue in () if is_quarantined else worker.queues:
            serving[queue] += 1
        for metric, value in _gpu(worker):
            gpus.setdefault(metric.name, []).append(((name, worker.gpu_uuid, label), value))
    return {
        metrics.WORKERS.name: states.items(),
        metrics.WORKER_CLOCK_OFFSET.name: [
            ((name,), worker.clock_offset_s) for name, worker in fleet.workers.items()
        ],
        metrics.QUEUE_WORKERS.name: [((queue,), count) for queue, count in serving.items()],
        **gpus,
    }


def _gpu(worker: WorkerInfo) -> Iterator[tuple[metrics.Metric, float]]:
    """Yield the metrics of a worker's GPU that are known."""
    if worker.gpu_uuid is None:
        return
    yield metrics.GPU_QUARANTINED, worker.quarantined is not None
    stats = worker.gpu_stats
    if stats is None:
        return
    yield metrics.GPU_MEMORY, stats.memory_bytes
    yield metrics.GPU_MEMORY_USED, stats.used_bytes
    if stats.utilization is not None:
        yield metrics.GPU_UTILIZATION, stats.utilization
    if stats.temperature_c is not None:
        yield metrics.GPU_TEMPERATURE, stats.temperature_c


def _broker(client: Redis) -> dict[str, Values]:
    with client.pipeline(transaction=False) as pipe:
        pipe.info("memory")
        pipe.info("stats")
        memory, stats = cast("list[dict[str, Any]]", pipe.execute())
    return {
        **_one(metrics.BROKER_MEMORY, memory["used_memory"]),
        **_one(metrics.BROKER_MEMORY_MAX, memory["maxmemory"]),
        **_one(metrics.BROKER_NOEVICTION, memory["maxmemory_policy"] == "noeviction"),
        **_one(metrics.BROKER_EVICTED, stats["evicted_keys"]),
    }


def _family(
    metric: metrics.Metric, counts: metrics.Counts, values: Values, *, is_up: bool
) -> Metric:
    """Return a metric as Prometheus's client takes it.

    Args:
        metric: The metric.
        counts: All counters.
        values: The values of a metric that is not counted.
        is_up: Whether the broker answered; without it, uncounted labels are unknown, not 0.
    """
    labels = list(metric.labels)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for label_values, buckets, total in metric.histograms(counts):
            histogram.add_metric(list(label_values), buckets, total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=labels)
    counted = metric.samples(counts) if metric.counted and is_up else ()
    for label_values, value in (*counted, *values):
        family.add_metric([str(label) for label in label_values], value)
    return family
