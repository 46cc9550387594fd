"""The fleet's metrics for Prometheus: what was counted, and what is read when somebody asks.

Reads the broker and nothing else, so one exporter is enough for a fleet, and more do no harm.
"""

import logging
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any, cast

from prometheus_client import CollectorRegistry, start_http_server
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
from tasks.cache.index import CacheRegistry
from tasks.cache.plan import KINDS
from tasks.metrics import METRICS, OTHER_TENANTS, class_label
from tasks.state.counters import Counters
from tasks.state.fleet_snapshot import FleetSnapshot, Place, read_fleet
from tasks.store import pack_prefix

logger = logging.getLogger(__name__)

Values = Iterable[tuple[tuple[object, ...], float]]
_STATES = ("idle", "busy", "quarantined")
# More tenants than these are one line: whoever sends jobs names tenants as they like.
MOST_TENANTS = 50
# Reading the names of all packs is the one thing that grows with a fleet's age.
_LOOK_AT_CACHE_EVERY_S = 60.0


class FleetCollector(Collector):
    """Reads a fleet's metrics.

    Args:
        client: A connection to the broker that decodes responses.
        ttl: How long a job is kept.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis = client
        self._counters = Counters(client, ttl)
        self._registry = CacheRegistry(client, ttl, ttl)
        self._errors = 0
        self._cache: tuple[float, dict[str, Values]] = (-_LOOK_AT_CACHE_EVERY_S, {})
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Nothing is registered twice, so nothing is to be compared."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric, some without values while the broker is away."""
        began, up = time.perf_counter(), True
        counts, read = dict[str, int](), dict[str, Values]()
        with self._lock:
            try:
                counts, read = self._counters.read(), dict(self._read())
            except RedisError as error:
                up = False
                self._errors += 1
                logger.warning("the broker tells nothing: %s", error)
            read |= _one(metrics.BROKER_UP, up)
            read |= _one(metrics.EXPORTER_ERRORS, self._errors)
            versions = version("training-worker"), platform.python_version()
            read[metrics.BUILD.name] = [(versions, 1)]
            read |= _one(metrics.EXPORTER_SECONDS, time.perf_counter() - began)
        for metric in METRICS:
            yield _family(metric, counts, read.get(metric.name, ()), up=up)

    def _read(self) -> Iterator[tuple[str, Values]]:
        now = read_fleet(self._redis)
        yield from _queues(now).items()
        yield from _workers(now).items()
        yield from self._cached().items()
        yield from _broker(self._redis).items()
        for metric, value in (
            (metrics.JOBS_IN_FLIGHT, now.in_flight),
            (metrics.RETRY_JOBS, now.due),
            (metrics.DEAD_LETTER_JOBS, now.dead_letters),
            (metrics.WEBHOOKS_WAITING, now.pending_webhooks),
        ):
            yield from _one(metric, value).items()

    def _cached(self) -> dict[str, Values]:
        read_at, found = self._cache
        if time.monotonic() - read_at < _LOOK_AT_CACHE_EVERY_S:
            return found
        packs = self._registry.packs()
        of = {kind: [it for it in packs if it.key.startswith(pack_prefix(kind))] for kind in KINDS}
        found = {
            metrics.CACHE_BYTES.name: [((k,), sum(it.size for it in of[k])) for k in KINDS],
            metrics.CACHE_PACKS.name: [((k,), len(of[k])) for k in KINDS],
        }
        self._cache = time.monotonic(), found
        return found


def serve(client: Redis, ttl: timedelta, address: str, port: int) -> None:
    """Answer scrapes until the process is asked to end.

    Raises:
        OSError: The address cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(FleetCollector(client, ttl))
    server, thread = start_http_server(port, address, registry)
    signal.signal(signal.SIGTERM, lambda *_: server.shutdown())
    thread.join()
    server.server_close()


def _one(metric: metrics.Metric, value: float) -> dict[str, Values]:
    return {metric.name: [((), value)]}


def _queues(now: FleetSnapshot) -> dict[str, Values]:
    """What waits and runs; each queue is told of, also where nothing does."""
    named = _named(now)
    waiting: Counter[Place] = Counter({(queue, metrics.UNREAD): 0 for queue in ALL_QUEUES})
    tenant_waits: dict[Place, float] = {}
    waits = dict.fromkeys(ALL_QUEUES, 0.0)
    for (queue, tenant), count in now.waiting.items():
        place, seconds = (queue, named.get(tenant, OTHER_TENANTS)), now.waits_s((queue, tenant))
        waiting[place] += count
        tenant_waits[place] = max(tenant_waits.get(place, 0.0), seconds)
        waits[queue] = max(waits[queue], seconds)
    running = Counter(it.queue for it in now.running)
    return {
        metrics.QUEUE_JOBS.name: waiting.items(),
        metrics.OLDEST_WAIT.name: [((queue,), wait) for queue, wait in waits.items()],
        metrics.TENANT_OLDEST_WAIT.name: [
            (place, wait) for place, wait in tenant_waits.items() if place[1] != metrics.UNREAD
        ],
        metrics.JOBS_RUNNING.name: [((queue,), running[queue]) for queue in ALL_QUEUES],
    }


def _named(now: FleetSnapshot) -> dict[str, str]:
    """The tenants that have a line of their own: those with the most jobs that wait."""
    of: Counter[str] = Counter()
    for (_, tenant), count in now.waiting.items():
        of[tenant] += count
    del of[metrics.UNREAD]
    largest = sorted(of, key=lambda it: (-of[it], it))[:MOST_TENANTS]
    return {tenant: tenant for tenant in (metrics.UNREAD, *largest)}


def _workers(now: FleetSnapshot) -> dict[str, Values]:
    busy = {it.worker for it in now.running}
    states: Counter[tuple[str, str]] = Counter()
    serving = dict.fromkeys(ALL_QUEUES, 0)
    gpus: dict[str, list[tuple[tuple[object, ...], float]]] = {}

    def tell(metric: metrics.Metric, labels: tuple[object, ...], value: float | None) -> None:
        if value is not None:
            gpus.setdefault(metric.name, []).append((labels, value))

    for name, worker in now.workers.items():
        label, out = class_label(worker.memory_class), worker.quarantined is not None
        states.update({(label, state): 0 for state in _STATES})
        states[label, "quarantined" if out else "busy" if name in busy else "idle"] += 1
        for queue in () if out else worker.queues:
            serving[queue] += 1
        if worker.gpu_uuid is None:
            continue
        labels, figures = (name, worker.gpu_uuid, label), worker.gpu_stats
        tell(metrics.GPU_QUARANTINED, labels, out)
        if figures is not None:
            tell(metrics.GPU_MEMORY, labels, figures.memory_bytes)
            tell(metrics.GPU_MEMORY_USED, labels, figures.used_bytes)
            tell(metrics.GPU_UTILIZATION, labels, figures.utilization)
            tell(metrics.GPU_TEMPERATURE, labels, figures.temperature_c)
    return {
        metrics.WORKERS.name: states.items(),
        metrics.QUEUE_WORKERS.name: [((queue,), count) for queue, count in serving.items()],
        **gpus,
    }


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


def _family(metric: metrics.Metric, counts: metrics.Counts, read: Values, *, up: bool) -> Metric:
    """A metric as Prometheus's client wants it.

    Args:
        metric: What it is.
        counts: All that was counted.
        read: What was read of it.
        up: Whether the broker answered: where it did not, nothing is 0.
    """
    labels = list(metric.labels)
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for values, buckets, total in metric.histograms(counts):
            family.add_metric(list(values), buckets, total)
        return family
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    one = kind(metric.name, metric.help, labels=labels)
    counted = metric.samples(counts) if metric.counted and up else ()
    for values, value in (*counted, *read):
        one.add_metric([str(it) for it in values], value)
    return one
