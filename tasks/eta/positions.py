"""Where waiting jobs stand: their place, the jobs before them, and when they are expected to start.

Reads what ``tasks/eta/dispatch_order.py`` simulates, at a cost that does not grow with the number
of waiting jobs: the records of the first ones say how long each takes, and later jobs of a queue
are taken to be like them.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import cast

from redis import Redis

from routing.queues import CPU_QUEUE, ENGINE_QUEUES, GPU_QUEUES
from tasks.eta.dispatch_order import (
    MAX_STARTS,
    Fleet,
    Server,
    Start,
    Waiting,
    expected_starts,
    why_unknown,
)
from tasks.eta.estimate import NO_RUN, JobProgress, time_left
from tasks.eta.history import RunHistory, RunHistoryStore
from tasks.events import Progress
from tasks.state.job_reader import JobReader, execute_readable
from tasks.state.keys import IN_FLIGHT, TENANT_QUEUES, tenant_queue_key, tenants_key
from tasks.state.record import JobRecord, JobStatus, JobSummary
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import WorkerInfo, live_workers

# A simulation takes some 0.1 s, and many jobs are shown at a time.
_VALID_S = 10.0
_NEW_JOBS_S = 1.0
# Records that are read for their durations, in all queues together.
_MAX_READ = 200
_GPU_STAGES = ("cache", "train")
_GPU_QUEUES = frozenset((*GPU_QUEUES, *ENGINE_QUEUES))


@dataclass(frozen=True)
class Position:
    """Where a waiting job stands.

    Attributes:
        place: Its place among its tenant's jobs in front of the queue, from 1; None once it has
            been dispatched to the queue itself.
        jobs_before: The number of jobs of all tenants that are expected to start before it; None if
            unknown.
        starts_at: When the stage that it waits for is expected to start; None if unknown.
        unknown: Why that is unknown.
        quota: The quota of its tenant that holds it, in words.
    """

    place: int | None
    jobs_before: int | None = None
    starts_at: datetime | None = None
    unknown: str | None = None
    quota: str | None = None


@dataclass(frozen=True)
class _Snapshot:
    fleet: Fleet
    starts: Mapping[str, Start]
    read_s: float
    read_at: datetime


class Positions:
    """Reports where waiting jobs stand; thread-safe.

    Args:
        client: A connection to Redis that decodes responses.
        jobs: Reads jobs.
        queues: The tenant queues.
        quotas: The tenants' quotas.
        history: The fleet's run history.
    """

    def __init__(
        self,
        client: Redis,
        jobs: JobReader,
        queues: TenantQueues,
        quotas: Quotas,
        history: RunHistoryStore,
    ) -> None:
        self._redis, self._jobs, self._queues = client, jobs, queues
        self._quotas, self._history = quotas, history
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None

    def of(self, job: JobSummary) -> Position | None:
        """Return where a job stands; None if it does not wait in a queue."""
        queue = job.pending_queue
        if queue is None or job.due_at is not None or job.status == JobStatus.PAUSED:
            return None
        place = None
        if job.in_tenant_queue:
            rank = self._redis.zrank(tenant_queue_key(queue, job.tenant), job.id)
            place = None if rank is None else cast("int", rank) + 1
        snapshot = self._current(job)
        start = snapshot.starts.get(job.id)
        if job.tenant in snapshot.fleet.held and job.in_tenant_queue:
            quota = self._quotas.used_up(job.tenant)
            return Position(place, unknown=quota, quota=quota)
        if start is None or start.in_s is None:
            unknown = why_unknown(snapshot.fleet, queue)
            return Position(place, start.jobs_before if start else None, unknown=unknown)
        starts_at = snapshot.read_at + timedelta(seconds=start.in_s)
        return Position(place, start.jobs_before, max(starts_at, datetime.now(UTC)))

    def expected_waits_s(self, tenant: str | None) -> dict[str, float]:
        """Return how long a job that is submitted now would wait, by queue of GPUs where known.

        Args:
            tenant: Its tenant; None is one without jobs.
        """
        fleet = self._current().fleet
        if tenant in fleet.held:
            return {}
        queues = {name for it in fleet.servers for name in it.queues if name in _GPU_QUEUES}
        added = {
            queue: {
                **fleet.waiting.get(queue, {}),
                tenant or "": [
                    *fleet.waiting.get(queue, {}).get(tenant or "", ()),
                    Waiting(f"a job for {queue}", tenant or "", 0.0),
                ],
            }
            for queue in queues
        }
        starts = expected_starts(replace(fleet, waiting={**fleet.waiting, **added}))
        waits_s = {queue: starts.get(f"a job for {queue}") for queue in queues}
        return {
            queue: start.in_s
            for queue, start in waits_s.items()
            if start is not None and start.in_s is not None
        }

    def _current(self, job: JobSummary | None = None) -> _Snapshot:
        """Return what was read last, or read it again for a job that it does not have."""
        with self._lock:
            known = self._snapshot
            is_new = (
                known is not None
                and job is not None
                and job.id not in known.starts
                and job.updated_at > known.read_at
            )
            valid_s = _NEW_JOBS_S if is_new else _VALID_S
            if known is None or time.monotonic() - known.read_s >= valid_s:
                fleet = self._read()
                known = _Snapshot(
                    fleet, expected_starts(fleet), time.monotonic(), datetime.now(UTC)
                )
                self._snapshot = known
            return known

    def _read(self) -> Fleet:
        history, now = self._history.read(), datetime.now(UTC)
        workers = {
            name: info for name, info in live_workers(self._redis).items() if not info.quarantined
        }
        owners = cast("dict[str, str]", self._redis.hgetall(IN_FLIGHT))
        in_flight = self._jobs.get_all(list(owners))
        running = {
            record.stages[record.stage].worker: record
            for record in in_flight
            if record.pending_queue is None and record.stage in record.stages
        }
        progress = self._newest_progress([record.id for record in running.values()])
        sent: dict[str, list[Waiting]] = {}
        for record in sorted(in_flight, key=lambda record: record.updated_at):
            if record.pending_queue is not None:
                job = _waiting(record, history, now)
                sent.setdefault(record.pending_queue, []).append(job)
        ids = self._waiting_ids()
        return Fleet(
            servers=[
                _server(info, running.get(name), history, now, progress)
                for name, info in workers.items()
            ],
            sent=sent,
            waiting=self._with_durations(ids, history, now),
            in_flight=Counter(owners.values()),
            shares=self._queues.shares(),
            held=self._quotas.held_tenants(),
        )

    def _waiting_ids(self) -> dict[str, dict[str, list[str]]]:
        """Return the first waiting jobs by queue and tenant, in the order of dispatch."""
        queues = sorted(cast("set[str]", self._redis.smembers(TENANT_QUEUES)))
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrange(tenants_key(queue), 0, -1)
            tenants = cast("list[list[str]]", pipe.execute())
            places = [(q, name) for q, names in zip(queues, tenants, strict=True) for name in names]
            for queue, tenant in places:
                pipe.zrange(tenant_queue_key(queue, tenant), 0, MAX_STARTS - 1)
            lists = cast("list[list[str] | None]", execute_readable(pipe))
        ids: dict[str, dict[str, list[str]]] = {}
        for (queue, tenant), jobs in zip(places, lists, strict=True):
            ids.setdefault(queue, {})[tenant] = jobs or []
        return ids

    def _with_durations(
        self, ids: Mapping[str, Mapping[str, Sequence[str]]], history: RunHistory, now: datetime
    ) -> dict[str, dict[str, list[Waiting]]]:
        """Return the waiting jobs with how long they take, or are likely to."""
        lists = [jobs for tenants in ids.values() for jobs in tenants.values()]
        each = max(1, _MAX_READ // max(1, len(lists)))
        read = [job_id for jobs in lists for job_id in jobs[:each]][: 2 * _MAX_READ]
        known = {record.id: _waiting(record, history, now) for record in self._jobs.get_all(read)}
        found: dict[str, dict[str, list[Waiting]]] = {}
        for queue, tenants in ids.items():
            here = [known[job] for jobs in tenants.values() for job in jobs if job in known]
            seconds = [job.seconds for job in here if job.seconds is not None]
            usual = median(seconds) if seconds else None
            unknown = next((job.unknown for job in here if job.unknown), NO_RUN)
            found[queue] = {
                tenant: [
                    known.get(job) or Waiting(job, tenant, usual, "" if seconds else unknown)
                    for job in jobs
                ]
                for tenant, jobs in tenants.items()
            }
        return found

    def _newest_progress(self, ids: Sequence[str]) -> dict[str, Progress]:
        texts = self._jobs.newest_progress(ids)
        return {job_id: event for job_id, event in texts.items() if isinstance(event, Progress)}


def busy_s(
    record: JobRecord, history: RunHistory, now: datetime, progress: Progress | None = None
) -> tuple[float | None, str]:
    """Return how long a job keeps its worker from now on, or would; None and why if unknown.

    On a GPU that is until its training ends, and on a CPU until the stage ends.
    """
    images = record.artifacts.images
    known = JobProgress(None if images is None else (images,), progress)
    left = time_left(record, history, now, known)
    if left is None:
        return 0.0, ""  # about to stop
    first = left.stages[0]
    parts = [first]
    if first.queue != CPU_QUEUE:
        parts = [part for part in left.stages if part.stage in _GPU_STAGES]
    unknown = next((part for part in parts if part.seconds is None), None)
    if unknown is not None:
        return None, f"{unknown.stage}: {unknown.unknown}"
    return sum(part.seconds or 0.0 for part in parts), ""


def _waiting(record: JobRecord, history: RunHistory, now: datetime) -> Waiting:
    seconds, unknown = busy_s(record, history, now)
    return Waiting(record.id, record.tenant, seconds, unknown)


def _server(
    info: WorkerInfo,
    record: JobRecord | None,
    history: RunHistory,
    now: datetime,
    progress: Mapping[str, Progress],
) -> Server:
    if record is None:
        return Server(info.queues)
    seconds, unknown = busy_s(record, history, now, progress.get(record.id))
    return Server(info.queues, seconds, record.tenant, unknown)
