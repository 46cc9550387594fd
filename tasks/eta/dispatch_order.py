"""The order and times in which waiting jobs start: a simulation of dispatch from now on.

Pure functions. Tenants are chosen by the production code of ``routing/fair_share.py``, and workers
take jobs from their queues in their own order, as if no other job were submitted. A worker whose
job ends at an unknown time takes no other in the simulation: so times are rather too late than too
early, and those that depend on such workers alone stay unknown.
"""

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from routing.fair_share import ROOM, TenantShares, next_tenant

MAX_STARTS = 1000
"""How many starts are simulated; jobs behind them have no estimate."""
# For the order alone, where nothing is known.
_ANY_SECONDS = 3600.0


@dataclass(frozen=True)
class Waiting:
    """A waiting job.

    Attributes:
        id: The job.
        tenant: Its tenant.
        seconds: How long it will keep its worker; None if unknown.
        unknown: Why that is unknown.
    """

    id: str
    tenant: str
    seconds: float | None
    unknown: str = ""


@dataclass(frozen=True)
class Server:
    """A worker.

    Attributes:
        queues: The queues that it takes from, first served first.
        free_in_s: Seconds until it can take a job; None if unknown.
        tenant: The tenant of the job that it runs.
        unknown: Why ``free_in_s`` is unknown.
    """

    queues: tuple[str, ...]
    free_in_s: float | None = 0.0
    tenant: str | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Fleet:
    """What decides the order.

    Attributes:
        servers: The workers that take jobs.
        sent: The jobs in each queue, the first one first: they have been dispatched.
        waiting: By queue, the tenants in the order of their last dispatch, each with its jobs in
            their order.
        in_flight: The number of jobs in flight by tenant, those in ``sent`` included.
        shares: The tenants' shares.
        held: Tenants whose jobs a quota holds.
    """

    servers: Sequence[Server]
    sent: Mapping[str, Sequence[Waiting]]
    waiting: Mapping[str, Mapping[str, Sequence[Waiting]]]
    in_flight: Mapping[str, int]
    shares: TenantShares
    held: Collection[str] = ()


@dataclass(frozen=True)
class Start:
    """When a waiting job starts.

    Attributes:
        jobs_before: The number of jobs of all tenants that leave the same queue before it.
        in_s: Seconds until it starts; None if unknown.
    """

    jobs_before: int
    in_s: float | None


def expected_starts(fleet: Fleet) -> dict[str, Start]:
    """Return the starts of the jobs that leave their queues within ``MAX_STARTS``."""
    timed = {job_id: at for job_id, _, at in _simulate(fleet, _times(fleet.servers), None)}
    known = [it.seconds for it in _all_jobs(fleet) if it.seconds is not None]
    usual_s = median(known) if known else _ANY_SECONDS
    starts, left = {}, Counter[str]()
    for job_id, queue, _ in _simulate(fleet, _times(fleet.servers, usual_s), usual_s):
        starts[job_id] = Start(left[queue], timed.get(job_id))
        left[queue] += 1
    return starts


def why_unknown(fleet: Fleet, queue: str) -> str:
    """Return why the starts of jobs in a queue are unknown."""
    servers = [server for server in fleet.servers if queue in server.queues]
    if not servers:
        return f"no live worker takes jobs from {queue}"
    jobs = [*fleet.sent.get(queue, ()), *_flat(fleet.waiting.get(queue, {}).values())]
    reasons = [server.unknown for server in servers] + [job.unknown for job in jobs]
    return next(filter(None, reasons), f"the limit of its tenant, or the {MAX_STARTS} jobs before")


def _times(servers: Sequence[Server], usual_s: float | None = None) -> list[float | None]:
    return [usual_s if it.free_in_s is None else it.free_in_s for it in servers]


def _simulate(
    fleet: Fleet, free: Sequence[float | None], usual_s: float | None
) -> list[tuple[str, str, float]]:
    """Return the starts in their order: the job, its queue, and the seconds until then.

    Args:
        fleet: What decides them.
        free: When each worker becomes free; None for never.
        usual_s: The seconds of jobs of unknown duration; None if their worker never becomes free.
    """
    queues = _Queues(fleet)
    running = [server.tenant for server in fleet.servers]
    events = [(at, number) for number, at in enumerate(free) if at is not None]
    heapq.heapify(events)
    starts: list[tuple[str, str, float]] = []
    idle: list[int] = []
    while events and len(starts) < MAX_STARTS:
        now, number = heapq.heappop(events)
        ended, running[number] = running[number], None
        if ended is not None:
            queues.end(ended)
            # A tenant at its limit may be below it now.
            for other in idle:
                heapq.heappush(events, (now, other))
            idle = []
        taken = queues.take(fleet.servers[number].queues)
        if taken is None:
            idle.append(number)
            continue
        queue, job = taken
        starts.append((job.id, queue, now))
        running[number] = job.tenant
        seconds = job.seconds if job.seconds is not None else usual_s
        if seconds is not None:
            heapq.heappush(events, (now + seconds, number))
    return starts


class _Queues:
    """Queues with room for few messages, and the tenant queues in front of them."""

    def __init__(self, fleet: Fleet) -> None:
        self._shares = fleet.shares
        self._in_flight = Counter(fleet.in_flight)
        self._waiting = {
            queue: {name: deque(jobs) for name, jobs in tenants.items() if name not in fleet.held}
            for queue, tenants in fleet.waiting.items()
        }
        self._sent = {queue: deque[Waiting]() for queue in self._waiting}
        self._sent |= {queue: deque(jobs) for queue, jobs in fleet.sent.items()}
        self._dispatch()

    def take(self, queues: Iterable[str]) -> tuple[str, Waiting] | None:
        """Take the next job from the first of these queues that has one."""
        queue = next((name for name in queues if self._sent.get(name)), None)
        if queue is None:
            return None
        job = self._sent[queue].popleft()
        self._dispatch()
        return queue, job

    def end(self, tenant: str) -> None:
        """Note that a tenant has one job in flight less."""
        self._in_flight[tenant] -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        for queue, tenants in self._waiting.items():
            while tenants and len(self._sent[queue]) < ROOM:
                tenant = next_tenant(list(tenants), self._in_flight, self._shares)
                if tenant is None:
                    break
                jobs = tenants.pop(tenant)
                self._sent[queue].append(jobs.popleft())
                if jobs:
                    tenants[tenant] = jobs  # now behind the other tenants
                self._in_flight[tenant] += 1


def _all_jobs(fleet: Fleet) -> list[Waiting]:
    waiting = [_flat(tenants.values()) for tenants in fleet.waiting.values()]
    return [*_flat(fleet.sent.values()), *_flat(waiting)]


def _flat(lists: Iterable[Sequence[Waiting]]) -> list[Waiting]:
    return [job for jobs in lists for job in jobs]
