"""The fleet's metrics: the name, type, help text and labels of each.

Counters and histograms are kept in one hash in Redis, by the scripts that change jobs or beside
them, so that they outlive every process (``tasks/state/counters.py``). Gauges are read when
Prometheus asks. This module knows neither Redis nor Prometheus.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from routing.classes import MemoryClass
from routing.policy import TrainingType
from routing.queues import ALL_QUEUES, GPU_QUEUES
from tasks.contract import STAGES
from tasks.errors import ErrorCode
from tasks.state.keys import UNACKED

Kind = Literal["counter", "gauge", "histogram"]
Labels = Mapping[str, tuple[str, ...] | None]
Counts = Mapping[str, int]
"""Fields of the hash, and what is added to each."""

CPU = "cpu"
"""The value of label ``class`` for workers without a GPU."""
OTHER_TENANTS = "*"
"""The value of label ``tenant`` for all but the largest tenants; no tenant has this name."""
UNREAD = ""
"""The value of label ``tenant`` for jobs that were sent and that no CPU worker has read yet."""

_TYPES = tuple(TrainingType)
# The codes that a stage can fail with.
_CODES = (
    ErrorCode.INTERNAL,
    ErrorCode.INVALID_DATASET,
    ErrorCode.INVALID_MODEL,
    ErrorCode.INVALID_DESTINATION,
    ErrorCode.NOT_INSTALLED,
    ErrorCode.TRAINER_FAILED,
    ErrorCode.STORE,
    ErrorCode.OUT_OF_MEMORY,
    ErrorCode.GPU_FAILED,
    ErrorCode.DIVERGED,
    ErrorCode.UNREADABLE_FILE,
)
_INFINITY = "+Inf"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name in Prometheus; of a histogram, without the suffixes.
        kind: Its type.
        help: Its meaning, in a sentence.
        labels: The values of each label if they are known in advance, so that the metric is 0
            before the first count; None if they are not known.
        buckets: The upper bounds of a histogram, ascending.
        counted: Whether it is kept in Redis.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels
    buckets: tuple[float, ...] = ()
    counted: bool = False

    def field(self, *values: object) -> str:
        """Return the field of the hash for these values of the labels."""
        assert len(values) == len(self.labels)
        return "|".join([self.name, *map(str, values)])

    def one(self, *values: object, by: int = 1) -> dict[str, int]:
        """Return what to add to a counter: ``by``, or nothing if that is 0."""
        return {self.field(*values): by} if by else {}

    def observed(self, seconds: float, *values: object) -> dict[str, int]:
        """Return what to add to a histogram for an observation; the sum counts milliseconds."""
        place = bisect_left(self.buckets, seconds)
        bound = f"{self.buckets[place]:g}" if place < len(self.buckets) else _INFINITY
        return {
            f"{self.field(*values)}|{bound}": 1,
            "|".join([self._sum_name, *map(str, values)]): round(seconds * 1000),
        }

    def samples(self, counts: Counts) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield the values of a counter, each with the values of its labels."""
        known = [values for values in self.labels.values() if values is not None]
        samples: dict[tuple[str, ...], int] = {}
        if len(known) == len(self.labels):
            samples = dict.fromkeys(product(*known), 0)
        yield from (samples | dict(_fields_of(self.name, counts))).items()

    def histograms(
        self, counts: Counts
    ) -> Iterator[tuple[tuple[str, ...], list[tuple[str, int]], float]]:
        """Yield label values, cumulative counts by upper bound, and the sum in seconds."""
        rows: dict[tuple[str, ...], dict[str, int]] = {}
        for (*values, bound), count in _fields_of(self.name, counts):
            rows.setdefault(tuple(values), {})[bound] = count
        sums_ms = dict(_fields_of(self._sum_name, counts))
        for labels, by_bound in rows.items():
            total, buckets = 0, list[tuple[str, int]]()
            for bound in (*(f"{bound:g}" for bound in self.buckets), _INFINITY):
                total += by_bound.get(bound, 0)
                buckets.append((bound, total))
            yield labels, buckets, sums_ms.get(labels, 0) / 1000

    @property
    def _sum_name(self) -> str:
        return f"{self.name}_sum_ms"


def _fields_of(name: str, counts: Counts) -> Iterator[tuple[tuple[str, ...], int]]:
    for field, value in counts.items():
        field_name, *values = field.split("|")
        if field_name == name:
            yield tuple(values), value


_registry: list[Metric] = []


def _register(metric: Metric) -> Metric:
    _registry.append(metric)
    return metric


def _counter(name: str, help_: str, labels: Labels | None = None) -> Metric:
    return _register(Metric(f"training_{name}", "counter", help_, labels or {}, counted=True))


def _histogram(name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    unknown = dict.fromkeys(labels)
    return _register(Metric(f"training_{name}", "histogram", help_, unknown, buckets, counted=True))


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return _register(Metric(f"training_{name}", "gauge", help_, dict.fromkeys(labels)))


def _process_counter(name: str, help_: str) -> Metric:
    """Declare a counter that is not kept in Redis, but by the process that is asked."""
    return _register(Metric(f"training_{name}", "counter", help_, {}))


# Seconds: from an empty stage to a long training, finer below a minute.
_BOUNDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)

JOBS = _counter(
    "jobs_total",
    "Jobs that ended, by training type and status. A replayed job ends again.",
    {"type": _TYPES, "status": ("succeeded", "failed", "cancelled")},
)
DEAD_LETTERS = _counter(
    "dead_letters_total",
    "Jobs that entered the dead-letter queue: the infrastructure failed, and they can be replayed.",
)
TAKEOVERS = _counter(
    "stage_takeovers_total",
    "Running stages that another worker took over because theirs was lost.",
    {"stage": STAGES},
)
STAGE_ENDS = _counter(
    "stage_ends_total",
    "Ends of stage starts by outcome. Retried stages wait after a transient error, rerouted ones "
    "need another queue, released ones another worker.",
    {
        "stage": STAGES,
        "outcome": ("done", "failed", "cancelled", "retried", "rerouted", "released"),
    },
)
GPU_SECONDS = _counter(
    "gpu_seconds_total",
    "Seconds that stages used GPUs, lost starts included, by the memory class that jobs needed.",
    {"class": tuple(map(str, MemoryClass))},
)
STAGE_FAILURES = _counter(
    "stage_failures_total",
    "Failures of stages by error code, retried ones included.",
    {"stage": STAGES, "code": _CODES},
)
STAGE_SECONDS = _histogram(
    "stage_seconds",
    "Duration of completed stages, by the memory class of the GPU that ran them.",
    _BOUNDS,
    "stage",
    "type",
    "class",
)
WAIT_SECONDS = _histogram(
    "wait_seconds",
    "Time that stages waited in tenant queues and queues until a worker began them.",
    _BOUNDS,
    "queue",
)
REQUEUES = _counter(
    "requeues_total",
    "Stages that were sent again because their message was lost.",
    {"stage": STAGES},
)
REDELIVERED_MESSAGES = _counter(
    "redelivered_messages_total", "Messages of lost workers that returned to their queues."
)
UNREADABLE_MESSAGES = _counter(
    "unreadable_messages_total",
    "Messages that were set aside because no worker can process them, by the queue they were in; "
    f"{UNACKED} is what workers hold.",
    {"queue": (*ALL_QUEUES, UNACKED)},
)
LEASE_RENEWALS = _counter("lease_renewals_total", "Renewals of the leases of held messages.")
LEASE_LOSSES = _counter(
    "lease_losses_total", "Messages that another worker took over from a live worker."
)
THREAD_FAILURES = _counter(
    "thread_failures_total",
    "Rounds of workers' background threads that failed, by thread or maintenance job.",
    {"thread": None},
)
STEPS = _counter(
    "steps_total",
    "Training steps made, those repeated after an interruption included.",
    {"type": _TYPES, "class": None},
)
OOM_ESCALATIONS = _counter(
    "oom_escalations_total",
    "Jobs that ran out of GPU memory and moved to this queue of a larger memory class.",
    {"queue": GPU_QUEUES[1:]},
)
CACHE_ENTRIES = _counter(
    "cache_entries_total",
    "Cache entries that jobs needed: hits were in the cache, misses were computed.",
    {"kind": ("text", "latents"), "result": ("hit", "miss")},
)
TRAINER_STARTS = _counter(
    "trainer_starts_total",
    "Requests to trainers: to a new process, to a warm one, or to one restarted after a crash.",
    {"start": ("cold", "warm", "restart")},
)
CAPTION_RUNS = _counter(
    "caption_runs_total",
    "Runs of the model that writes captions for uploads, by result.",
    {"result": ("done", "failed")},
)
PUBLISHED_BYTES = _counter("published_bytes_total", "Bytes of published files.")
WEBHOOKS = _counter(
    "webhooks_total",
    "Deliveries of webhooks by result. An exhausted one was the last retry.",
    {"result": ("delivered", "failed", "exhausted")},
)

JOB_WEBHOOKS = _counter(
    "job_webhooks_total",
    "Deliveries of jobs' own webhooks by result. An exhausted one was the last retry; dropped ones "
    "were too many.",
    {"result": ("delivered", "failed", "exhausted", "dropped")},
)

QUEUE_JOBS = _gauge(
    "queue_jobs",
    "Jobs that wait in tenant queues and in the queue. Tenant '*' is all but the largest tenants; "
    "tenant '' is jobs that no worker has read yet.",
    "queue",
    "tenant",
)
OLDEST_WAIT = _gauge("oldest_wait_seconds", "Time that the oldest waiting job has waited.", "queue")
TENANT_OLDEST_WAIT = _gauge(
    "tenant_oldest_wait_seconds",
    "Time that a tenant's oldest waiting job has waited; of the largest tenants.",
    "queue",
    "tenant",
)
JOBS_RUNNING = _gauge("jobs_running", "Stages that run, by the queue that they came from.", "queue")
WORKERS_WANTED = _gauge(
    "workers_wanted",
    "Workers of a queue that would have work: jobs that run from it, and jobs that wait for it "
    "within their tenants' limits and quotas.",
    "queue",
)
JOBS_IN_FLIGHT = _gauge("jobs_in_flight", "Jobs that have a message or whose stage runs.")
TENANT_GPU_SECONDS = _gauge(
    "tenant_gpu_seconds",
    "GPU seconds since the month began (UTC), of the tenants that used most; '*' is all others.",
    "tenant",
)
RETRY_JOBS = _gauge("retry_jobs", "Jobs that wait for a retry after a transient error.")
DEAD_LETTER_JOBS = _gauge("dead_letter_jobs", "Jobs in the dead-letter queue.")
WEBHOOKS_WAITING = _gauge("webhooks_waiting", "Ended jobs whose webhook is not delivered yet.")
JOB_WEBHOOK_TENANTS = _gauge(
    "job_webhook_tenants", "Tenants whose jobs' own webhooks have pending deliveries."
)
QUEUE_WORKERS = _gauge(
    "queue_workers", "Live workers that serve a queue and are not quarantined.", "queue"
)
WORKERS = _gauge(
    "workers", "Live workers by memory class and state: idle, busy, quarantined.", "class", "state"
)
WORKER_CLOCK_OFFSET = _gauge(
    "worker_clock_offset_seconds",
    "How far the clock of a worker's machine is ahead of the broker's.",
    "worker",
)
GPU_MEMORY = _gauge("gpu_memory_bytes", "Memory of a GPU.", "worker", "gpu", "class")
GPU_MEMORY_USED = _gauge(
    "gpu_memory_used_bytes", "Memory of a GPU that is in use.", "worker", "gpu", "class"
)
GPU_UTILIZATION = _gauge(
    "gpu_utilization_ratio", "Share of the time that a GPU computes.", "worker", "gpu", "class"
)
GPU_TEMPERATURE = _gauge(
    "gpu_temperature_celsius", "Temperature of a GPU.", "worker", "gpu", "class"
)
GPU_QUARANTINED = _gauge(
    "gpu_quarantined", "1 if a GPU is unhealthy and gets no jobs.", "worker", "gpu", "class"
)
CACHE_BYTES = _gauge("cache_bytes", "Size of the cache in the store.", "kind")
CACHE_PACKS = _gauge("cache_packs", "Files of the cache.", "kind")
BROKER_UP = _gauge("broker_up", "1 if the broker answers.")
BROKER_MEMORY = _gauge("broker_memory_bytes", "Memory that the broker uses.")
BROKER_MEMORY_MAX = _gauge(
    "broker_memory_max_bytes", "Memory that the broker may use at most; 0 is no limit."
)
BROKER_NOEVICTION = _gauge(
    "broker_noeviction", "1 if the broker's policy is noeviction, as it must be."
)
BROKER_EVICTED = _process_counter("broker_evicted_keys_total", "Keys that the broker evicted.")
BUILD = _gauge("build_info", "1, with the version of the exporter.", "version", "python")
EXPORTER_SECONDS = _gauge("exporter_scrape_seconds", "Duration of this scrape.")
EXPORTER_ERRORS = _process_counter(
    "exporter_errors_total", "Scrapes of this exporter that failed to read the broker."
)

METRICS = tuple(_registry)
"""All metrics, in the order of their declaration."""


def class_label(memory_class: MemoryClass | None) -> str:
    """Return the value of label ``class``."""
    return CPU if memory_class is None else str(memory_class)
