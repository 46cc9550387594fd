"""Every metric of a fleet: its name, type, help and labels are declared here and nowhere else.

Those of the first kind tell what happened. They are counted in one hash in Redis, in the scripts
that change jobs or beside them, so that they outlive every process (``tasks/state/counters.py``). Those
of the second kind tell what is, and are read when somebody asks. Knows neither Redis nor
Prometheus.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from routing.classes import MemoryClass
from routing.queues import GPU_QUEUES
from routing.requirements import TrainingType
from tasks.contract import STAGES
from tasks.errors import ErrorCode

Kind = Literal["counter", "gauge", "histogram"]
Counts = Mapping[str, int]
"""Fields of the hash, and what is added to each."""

CPU = "cpu"
"""What stands for the memory class where there is no GPU."""
OTHER_TENANTS = "*"
"""Stands for the tenants beyond the largest ones; no tenant can be called so."""
UNREAD = ""
"""Stands for the tenant of jobs that were sent, and that no CPU worker has read yet."""

_TYPES = tuple(TrainingType)
# Of the failures that a stage can have.
_CODES = (
    ErrorCode.INTERNAL,
    ErrorCode.INVALID_DATASET,
    ErrorCode.INVALID_MODEL,
    ErrorCode.TRAINER_FAILED,
    ErrorCode.STORE,
    ErrorCode.OUT_OF_MEMORY,
    ErrorCode.DIVERGED,
    ErrorCode.UNREADABLE_FILE,
)
_SUM_MS = "ms"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: As it is asked for; a histogram's without its ends.
        kind: Its type.
        help: What it tells, in a line.
        labels: Each label's values where they are known before, so that each is told as 0 until
            it is counted; None where they are not.
        buckets: A histogram's upper bounds.
        counted: Whether it is kept in Redis.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...] | None]
    buckets: tuple[float, ...] = ()
    counted: bool = False

    def field(self, *values: object) -> str:
        """Where it is counted with these values of its labels."""
        assert len(values) == len(self.labels)
        return "|".join([self.name, *map(str, values)])

    def one(self, *values: object, by: int = 1) -> dict[str, int]:
        """What is added when it happened; nothing where it happened 0 times."""
        return {self.field(*values): by} if by else {}

    def observed(self, seconds: float, *values: object) -> dict[str, int]:
        """What is added to a histogram; its sum is kept in milliseconds."""
        place = bisect_left(self.buckets, seconds)
        bound = f"{self.buckets[place]:g}" if place < len(self.buckets) else "+Inf"
        field = self.field(*values)
        return {f"{field}|{bound}": 1, f"{field}|{_SUM_MS}": round(seconds * 1000)}

    def samples(self, counts: Counts) -> Iterator[tuple[tuple[str, ...], int]]:
        """A counter's values by those of its labels."""
        known = [values for values in self.labels.values() if values is not None]
        found: dict[tuple[str, ...], int] = {}
        if len(known) == len(self.labels):
            found = dict.fromkeys(product(*known), 0)
        yield from (found | dict(self._own(counts))).items()

    def histograms(
        self, counts: Counts
    ) -> Iterator[tuple[tuple[str, ...], list[tuple[str, int]], float]]:
        """A histogram's values by those of its labels: bounds with cumulated counts, and a sum."""
        rows: dict[tuple[str, ...], dict[str, int]] = {}
        for (*values, part), value in self._own(counts):
            rows.setdefault(tuple(values), {})[part] = value
        for values_of, parts in rows.items():
            total, buckets = 0, list[tuple[str, int]]()
            for bound in [*(f"{it:g}" for it in self.buckets), "+Inf"]:
                total += parts.get(bound, 0)
                buckets.append((bound, total))
            yield values_of, buckets, parts.get(_SUM_MS, 0) / 1000

    def _own(self, counts: Counts) -> Iterator[tuple[tuple[str, ...], int]]:
        for field, value in counts.items():
            name, *values = field.split("|")
            if name == self.name:
                yield tuple(values), value


def _counter(name: str, help_: str, **labels: tuple[str, ...] | None) -> Metric:
    return Metric(f"training_{name}", "counter", help_, labels, counted=True)


def _histogram(name: str, help_: str, buckets: tuple[float, ...], **labels: None) -> Metric:
    return Metric(f"training_{name}", "histogram", help_, labels, buckets, counted=True)


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return Metric(f"training_{name}", "gauge", help_, dict.fromkeys(labels))


# Seconds: from what an empty stage takes to what a long training takes, finer below a minute.
_BOUNDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)

JOBS = _counter(
    "jobs_total",
    "Jobs that ended, by training type and end. One that is replayed ends again.",
    type=_TYPES,
    status=("succeeded", "failed", "cancelled"),
)
DEAD_LETTERS = _counter(
    "dead_letters_total", "Jobs that failed through no fault of their own, and can be replayed."
)
TAKEOVERS = _counter(
    "stage_takeovers_total",
    "Starts of stages whose worker was lost in the middle.",
    stage=STAGES,
)
STAGE_ENDS = _counter(
    "stage_ends_total",
    "Ends of starts of stages: retried ones wait out a fault, rerouted ones need another queue, "
    "released ones another worker.",
    stage=STAGES,
    outcome=("done", "failed", "cancelled", "retried", "rerouted", "released"),
)
STAGE_FAILURES = _counter(
    "stage_failures_total",
    "Failures of stages by code, whether or not they are tried again.",
    stage=STAGES,
    code=_CODES,
)
STAGE_SECONDS = _histogram(
    "stage_seconds",
    "Seconds that stages took which were done, by the memory class of the GPU that did them.",
    _BOUNDS,
    stage=None,
    type=None,
    **{"class": None},
)
WAIT_SECONDS = _histogram(
    "wait_seconds",
    "Seconds that stages waited in lanes and queues until a worker began them.",
    _BOUNDS,
    queue=None,
)
REQUEUES = _counter(
    "requeues_total", "Stages whose message was lost and that were sent anew.", stage=STAGES
)
REDELIVERED_MESSAGES = _counter(
    "redelivered_messages_total", "Messages of lost workers that went back to their queues."
)
LEASE_RENEWALS = _counter("lease_renewals_total", "Renewals of held messages.")
LEASE_LOSSES = _counter(
    "lease_losses_total", "Messages that a live worker held and another one took over."
)
STEPS = _counter(
    "steps_total",
    "Weight updates made, those made again after a kill included.",
    **{"type": _TYPES, "class": None},
)
OOM_ESCALATIONS = _counter(
    "oom_escalations_total",
    "Jobs that ran out of GPU memory and went to this larger queue.",
    queue=GPU_QUEUES[1:],
)
CACHE_ENTRIES = _counter(
    "cache_entries_total",
    "Entries of the cache that jobs wanted: found there, or missing and made.",
    kind=("text", "latents"),
    result=("hit", "miss"),
)
TRAINER_STARTS = _counter(
    "trainer_starts_total",
    "Requests to trainers: to a new process, to a warm one, or to one started again after a crash.",
    start=("cold", "warm", "restart"),
)
PUBLISHED_BYTES = _counter("published_bytes_total", "Bytes of published files.")
WEBHOOKS = _counter(
    "webhooks_total",
    "Tries to tell the end of a job by webhook.",
    result=("delivered", "failed", "exhausted"),
)

QUEUE_JOBS = _gauge(
    "queue_jobs",
    "Jobs that wait, in lanes and in the queue. Tenant '*' are those beyond the largest, '' those "
    "that no worker has read yet.",
    "queue",
    "tenant",
)
OLDEST_WAIT = _gauge("oldest_wait_seconds", "How long the oldest waiting job waits.", "queue")
TENANT_OLDEST_WAIT = _gauge(
    "tenant_oldest_wait_seconds",
    "How long the oldest waiting job of a tenant waits, of the largest tenants.",
    "queue",
    "tenant",
)
JOBS_RUNNING = _gauge("jobs_running", "Stages that run now, by the queue they came from.", "queue")
JOBS_IN_FLIGHT = _gauge("jobs_in_flight", "Jobs that have a message, or whose stage runs.")
RETRY_JOBS = _gauge("retry_jobs", "Jobs that wait out a fault before their next try.")
DEAD_LETTER_JOBS = _gauge("dead_letter_jobs", "Jobs on the list of the dead.")
WEBHOOKS_WAITING = _gauge("webhooks_waiting", "Ends of jobs that are still to be told.")
QUEUE_WORKERS = _gauge(
    "queue_workers", "Live workers that serve a queue and are not quarantined.", "queue"
)
WORKERS = _gauge(
    "workers", "Live workers by memory class and state: idle, busy, quarantined.", "class", "state"
)
GPU_MEMORY = _gauge("gpu_memory_bytes", "A GPU's memory.", "worker", "gpu", "class")
GPU_MEMORY_USED = _gauge(
    "gpu_memory_used_bytes", "What of a GPU's memory is in use.", "worker", "gpu", "class"
)
GPU_UTILIZATION = _gauge(
    "gpu_utilization_ratio", "Share of the time that a GPU computes.", "worker", "gpu", "class"
)
GPU_TEMPERATURE = _gauge(
    "gpu_temperature_celsius", "A GPU's temperature.", "worker", "gpu", "class"
)
GPU_QUARANTINED = _gauge(
    "gpu_quarantined", "1 where a GPU is not fit and gets no work.", "worker", "gpu", "class"
)
CACHE_BYTES = _gauge("cache_bytes", "What the cache holds in the store.", "kind")
CACHE_PACKS = _gauge("cache_packs", "The cache's files.", "kind")
BROKER_UP = _gauge("broker_up", "1 where the broker answers.")
BROKER_MEMORY = _gauge("broker_memory_bytes", "Memory that the broker uses.")
BROKER_MEMORY_MAX = _gauge(
    "broker_memory_max_bytes", "The most that the broker may use; 0 is no limit."
)
BROKER_NOEVICTION = _gauge(
    "broker_noeviction", "1 where the broker evicts nothing, as it must not."
)
BROKER_EVICTED = Metric(
    "training_broker_evicted_keys_total", "counter", "Keys that the broker evicted.", {}
)
BUILD = _gauge("build_info", "1, with the version of the exporter.", "version", "python")
EXPORTER_SECONDS = _gauge("exporter_scrape_seconds", "Seconds that this answer took to read.")
EXPORTER_ERRORS = Metric(
    "training_exporter_errors_total", "counter", "Answers of this exporter without the fleet.", {}
)

METRICS = tuple(it for it in globals().copy().values() if isinstance(it, Metric))
"""All of them, in the order of their declaration."""


def class_label(memory_class: MemoryClass | None) -> str:
    """The value of ``class``."""
    return CPU if memory_class is None else str(memory_class)
