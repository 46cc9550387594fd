"""A discrete-event simulation of a fleet: the queues of production, and others to compare with.

A worker takes messages as kombu's Redis transport hands them out: of the workers that have room,
the one that has waited longest is served first, from its queues in the order that kombu's own
cycle says. The queues of a GPU and of a job are those of ``routing``, not a model of them.
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
    """How jobs find their GPU.

    Attributes:
        name: For people.
        serves: The queues of a GPU.
        queue_of: The queue of a job.
        order: kombu's ``queue_order_strategy``.
        held: Messages that a worker may hold, the one it works on included.
        lanes: Whether tenants have lanes in front of the queues.
        spills_after_s: How long a job must have waited before a larger GPU takes it.
    """

    name: str
    serves: Callable[[MemoryClass], tuple[str, ...]] = served_queues
    queue_of: Callable[[MemoryClass], str] = gpu_queue
    order: str = "priority"
    held: int = 1
    lanes: bool = False
    spills_after_s: float = 0.0


_MOMENT_S = 1e-3

OURS = Policy("training-worker", lanes=True)
POLICIES = (
    OURS,
    # Not built: it would save a fifteenth of the wait, and cost each class a second queue.
    Policy("ours, spilling late", lanes=True, spills_after_s=600.0),
    Policy("dedicated pools", serves=lambda memory_class: (gpu_queue(memory_class),)),
    Policy("one FIFO", serves=lambda _: ("all",), queue_of=lambda _: "all"),
    Policy("kombu's order", order="round_robin"),
    # Four messages are held by each process of a pool, as Celery comes.
    Policy("stock Celery", order="round_robin", held=4),
)


@dataclass(frozen=True)
class Run:
    """What became of a job.

    Attributes:
        job: The job.
        started_s: When it began.
        gpu: The place of its GPU in the fleet.
    """

    job: Arrival
    started_s: float
    gpu: int

    @property
    def wait_s(self) -> float:
        """How long it waited."""
        return self.started_s - self.job.arrival_s

    @property
    def ended_s(self) -> float:
        """When it ended."""
        return self.started_s + self.job.duration_s


def simulate(policy: Policy, fleet: list[MemoryClass], jobs: list[Arrival]) -> list[Run]:
    """Run a workload to its end.

    Args:
        policy: How jobs find their GPU.
        fleet: The GPUs, one worker each.
        jobs: By arrival; each is held by at least one of the GPUs.

    Returns:
        A run for each job, in the order in which they began.
    """
    env = simpy.Environment()
    broker = _Broker(policy)
    workers = [_Worker(env, broker, place, gpu) for place, gpu in enumerate(fleet)]
    broker.waiting.extend(workers)

    def arrive() -> Generator[Any, Any, None]:
        for job in jobs:
            yield env.timeout(job.arrival_s - env.now)
            broker.put(job)
            if policy.spills_after_s:
                # A moment later than that, lest the sum of two floats falls short of it.
                look_again = env.timeout(policy.spills_after_s + _MOMENT_S)
                look_again.callbacks.append(lambda _: broker.hand_out())

    env.process(arrive())
    env.run()
    return sorted((run for worker in workers for run in worker.runs), key=lambda run: run.started_s)


class _Broker:
    """Queues with lanes in front, and workers that wait, the longest wait first."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.queues: dict[str, deque[Arrival]] = {}
        self._lanes: dict[str, dict[str, deque[Arrival]]] = {}
        self._room = ROOM if policy.lanes else inf
        self._in_flight: Counter[str] = Counter()
        self.waiting: deque[_Worker] = deque()

    def put(self, job: Arrival) -> None:
        queue = self.policy.queue_of(job.memory_class)
        self.queues.setdefault(queue, deque())
        self._lanes.setdefault(queue, {}).setdefault(job.tenant, deque()).append(job)
        self.hand_out()

    def ended(self, job: Arrival) -> None:
        self._in_flight[job.tenant] -= 1
        self.hand_out()

    def hand_out(self) -> None:
        """Give out messages for as long as a worker that waits can take one."""
        self._let_go()
        while taker := next((w for w in self.waiting if w.takes_one()), None):
            self.waiting.remove(taker)
            self.waiting.append(taker)
            self._let_go()

    def _let_go(self) -> None:
        """Let jobs leave their lanes for as long as there is room in their queues."""
        for queue, lanes in self._lanes.items():
            while len(self.queues[queue]) < self._room:
                tenant = next_tenant(list(lanes), self._in_flight, {})
                if tenant is None:
                    break
                jobs = lanes.pop(tenant)
                self.queues[queue].append(jobs.popleft())
                self._in_flight[tenant] += 1
                if jobs:
                    lanes[tenant] = jobs  # behind the others: it had its turn


class _Worker:
    def __init__(
        self, env: simpy.Environment, broker: _Broker, place: int, gpu: MemoryClass
    ) -> None:
        self._env, self._broker, self._place, self.gpu = env, broker, place, gpu
        self._cycle = cycle_by_name(broker.policy.order)()  # type: ignore[no-untyped-call]
        self._cycle.update(list(broker.policy.serves(gpu)))
        self._held = 0
        self._messages: simpy.Store = simpy.Store(env)
        self.runs: list[Run] = []
        env.process(self._work())

    def takes_one(self) -> bool:
        """Take a message, where there is room and one for this GPU at the head of a queue."""
        if self._held >= self._broker.policy.held:
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
        spills = waited_s >= self._broker.policy.spills_after_s
        return job.memory_class == self.gpu or (job.memory_class < self.gpu and spills)

    def _work(self) -> Generator[Any, Any, None]:
        while True:
            job = yield self._messages.get()
            self.runs.append(Run(job, self._env.now, self._place))
            yield self._env.timeout(job.duration_s)
            self._held -= 1
            self._broker.ended(job)


def least_makespan_s(fleet: list[MemoryClass], jobs: list[Arrival]) -> float:
    """No policy can end all jobs sooner than this, in seconds from the beginning.

    The work that needs a class or more cannot begin before its first job comes, and only the GPUs
    of that class or more can do it.
    """
    bounds = [job.arrival_s + job.duration_s for job in jobs]
    for memory_class in {job.memory_class for job in jobs}:
        need = [job for job in jobs if job.memory_class >= memory_class]
        able = sum(gpu >= memory_class for gpu in fleet)
        first = min(job.arrival_s for job in need)
        bounds.append(first + sum(job.duration_s for job in need) / able)
    return max(bounds)
