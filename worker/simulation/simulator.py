"""Discrete-event simulation of a fleet under a queueing policy.

A worker takes messages as kombu's Redis transport hands them out: the free worker that has waited
longest is served first, from its queues in the order of kombu's own cycle. Queues and tenant
shares are the production code of ``routing``, not a model of it.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import inf
from typing import Any

import simpy
from kombu.utils.scheduling import cycle_by_name

from routing.classes import MemoryClass
from routing.fair_share import ROOM, next_tenant
from routing.queues import gpu_queue, served_queues
from worker.simulation.workload import Arrival


@dataclass(frozen=True)
class Policy:
    """How jobs are assigned to GPUs.

    Attributes:
        name: Name in reports.
        serves: Returns the queues that a GPU serves.
        queue_of: Returns the queue of a job.
        order: kombu's ``queue_order_strategy``.
        prefetch: Number of messages that a worker holds, including the running one.
        tenant_queues: Whether each queue has a queue per tenant in front of it.
        spill_after_s: Seconds that a job waits before a larger GPU takes it.
    """

    name: str
    serves: Callable[[MemoryClass], tuple[str, ...]] = served_queues
    queue_of: Callable[[MemoryClass], str] = gpu_queue
    order: str = "priority"
    prefetch: int = 1
    tenant_queues: bool = False
    spill_after_s: float = 0.0


PRODUCTION = Policy("training-worker", tenant_queues=True)
POLICIES = (
    PRODUCTION,
    # Not built: it would save a fifteenth of the wait, and cost each class a second queue.
    Policy("late spill", tenant_queues=True, spill_after_s=600.0),
    Policy("dedicated pools", serves=lambda memory_class: (gpu_queue(memory_class),)),
    Policy("one FIFO", serves=lambda _: ("all",), queue_of=lambda _: "all"),
    Policy("round robin", order="round_robin"),
    # Celery's default prefetch: four messages per process of a pool.
    Policy("stock Celery", order="round_robin", prefetch=4),
)

# A job's age, as a difference of two floats, may be slightly below ``spill_after_s``.
_ROUNDING_S = 1e-3


@dataclass(frozen=True)
class Run:
    """The simulated run of a job.

    Attributes:
        job: The job.
        started_s: Its start, in seconds from the beginning.
        gpu: Index of its GPU in the fleet.
    """

    job: Arrival
    started_s: float
    gpu: int

    @property
    def wait_s(self) -> float:
        """Seconds that it waited."""
        return self.started_s - self.job.arrival_s

    @property
    def ended_s(self) -> float:
        """Its end, in seconds from the beginning."""
        return self.started_s + self.job.duration_s


def simulate(policy: Policy, fleet: list[MemoryClass], jobs: list[Arrival]) -> list[Run]:
    """Simulate a workload until every job has ended.

    Args:
        policy: How jobs are assigned to GPUs.
        fleet: The memory class of each GPU; each has one worker.
        jobs: The jobs by arrival; each fits at least one of the GPUs.

    Returns:
        The run of each job, by start.
    """
    env = simpy.Environment()
    broker = _Broker(policy)
    workers = [_Worker(env, broker, index, gpu) for index, gpu in enumerate(fleet)]
    broker.workers.extend(workers)

    def arrive() -> Generator[Any, Any, None]:
        for job in jobs:
            yield env.timeout(job.arrival_s - env.now)
            broker.put(job)
            if policy.spill_after_s:
                spill = env.timeout(policy.spill_after_s + _ROUNDING_S)
                spill.callbacks.append(lambda _: broker.deliver())

    env.process(arrive())
    env.run()
    return sorted((run for worker in workers for run in worker.runs), key=lambda run: run.started_s)


def min_makespan_s(fleet: list[MemoryClass], jobs: list[Arrival]) -> float:
    """Return a lower bound of the time until the last job ends, under any policy.

    The jobs of a class or a larger one cannot start before the first of them arrives, and only the
    GPUs of that class or a larger one can run them.
    """
    bounds = [job.arrival_s + job.duration_s for job in jobs]
    for memory_class in {job.memory_class for job in jobs}:
        members = [job for job in jobs if job.memory_class >= memory_class]
        gpus = sum(gpu >= memory_class for gpu in fleet)
        first_s = min(job.arrival_s for job in members)
        bounds.append(first_s + sum(job.duration_s for job in members) / gpus)
    return max(bounds)


class _Broker:
    """Queues, tenant queues in front of them, and the workers."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.queues: dict[str, deque[Arrival]] = {}
        self._tenant_queues: dict[str, dict[str, deque[Arrival]]] = {}
        self._capacity = ROOM if policy.tenant_queues else inf
        self._in_flight: Counter[str] = Counter()
        self.workers: deque[_Worker] = deque()
        """The workers, the one served longest ago first."""

    def put(self, job: Arrival) -> None:
        """Add a job that arrives."""
        queue = self.policy.queue_of(job.memory_class)
        self.queues.setdefault(queue, deque())
        self._tenant_queues.setdefault(queue, {}).setdefault(job.tenant, deque()).append(job)
        self.deliver()

    def finish(self, job: Arrival) -> None:
        """Remove a job that has ended."""
        self._in_flight[job.tenant] -= 1
        self.deliver()

    def deliver(self) -> None:
        """Deliver messages while a worker can take one."""
        self._dispatch()
        while taker := next((worker for worker in self.workers if worker.take()), None):
            self.workers.remove(taker)
            self.workers.append(taker)
            self._dispatch()

    def _dispatch(self) -> None:
        """Move jobs from tenant queues to their queues while these have capacity."""
        for queue, tenant_queues in self._tenant_queues.items():
            while len(self.queues[queue]) < self._capacity:
                tenant = next_tenant(list(tenant_queues), self._in_flight, {})
                if tenant is None:
                    break
                jobs = tenant_queues.pop(tenant)
                self.queues[queue].append(jobs.popleft())
                self._in_flight[tenant] += 1
                if jobs:
                    tenant_queues[tenant] = jobs  # now behind the other tenants


class _Worker:
    """A worker of one GPU."""

    def __init__(
        self, env: simpy.Environment, broker: _Broker, index: int, gpu: MemoryClass
    ) -> None:
        self._env, self._broker, self._index, self._gpu = env, broker, index, gpu
        self._cycle = cycle_by_name(broker.policy.order)()  # type: ignore[no-untyped-call]
        self._cycle.update(list(broker.policy.serves(gpu)))
        self._held = 0
        self._messages: simpy.Store = simpy.Store(env)
        self.runs: list[Run] = []
        env.process(self._work())

    def take(self) -> bool:
        """Take the first message that this worker may take; return whether there was one."""
        if self._held >= self._broker.policy.prefetch:
            return False
        for queue in self._cycle.consume(len(self._cycle.items)):
            jobs = self._broker.queues.get(queue)
            if jobs and self._may_take(jobs[0]):
                self._cycle.rotate(queue)
                self._messages.put(jobs.popleft())
                self._held += 1
                return True
        return False

    def _may_take(self, job: Arrival) -> bool:
        waited_s = self._env.now - job.arrival_s
        spills = waited_s >= self._broker.policy.spill_after_s
        return job.memory_class == self._gpu or (job.memory_class < self._gpu and spills)

    def _work(self) -> Generator[Any, Any, None]:
        while True:
            job = yield self._messages.get()
            self.runs.append(Run(job, self._env.now, self._index))
            yield self._env.timeout(job.duration_s)
            self._held -= 1
            self._broker.finish(job)
