"""How many GPUs of which class a workload needs, so that few of its jobs wait long."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from routing.classes import MemoryClass
from tasks.errors import UsageError
from worker.simulation.report import p95_wait_s
from worker.simulation.simulator import PRODUCTION, Run, simulate
from worker.simulation.workload import Arrival

# A fleet grows by this share of a class at a time, and shrinks GPU by GPU afterwards.
_GROWTH = 0.1


@dataclass(frozen=True)
class Sizing:
    """A fleet that meets a goal, and misses it with any GPU removed or replaced by a cheaper one.

    Attributes:
        counts: GPUs by class.
        p95_waits_s: The wait that 95 % of the jobs do not exceed, by the class that they need.
        price_per_hour: The price of all GPUs; None if a class has no price.
    """

    counts: Mapping[MemoryClass, int]
    p95_waits_s: Mapping[MemoryClass, float]
    price_per_hour: float | None

    def document(self) -> dict[str, object]:
        """Return the sizing as JSON."""
        return {
            "gpus": {str(memory_class): count for memory_class, count in self.counts.items()},
            "p95_wait_s": {str(key): seconds for key, seconds in self.p95_waits_s.items()},
            "price_per_hour": self.price_per_hour,
        }

    def tables(self) -> list[Table]:
        """Show a row for each class of GPUs or jobs."""
        price = "" if self.price_per_hour is None else f", {self.price_per_hour:g} an hour"
        table = Table(
            "", "GPUs", "95 % of its jobs wait at most, min", title=f"smallest fleet{price}"
        )
        for key in sorted(self.counts.keys() | self.p95_waits_s.keys()):
            wait_s = self.p95_waits_s.get(key)
            wait = "-" if wait_s is None else f"{wait_s / 60:.1f}"
            table.add_row(str(key), str(self.counts.get(key, 0)), wait)
        return [table]


def smallest_fleet(
    classes: set[MemoryClass],
    workload: list[Arrival],
    max_p95_s: float,
    prices: Mapping[MemoryClass, float],
) -> Sizing:
    """Return a fleet on which 95 % of the jobs of each class wait no longer than a goal.

    It grows from what the work takes at least, by the class whose jobs wait longest. Then each GPU
    that it does not need is removed or replaced by a cheaper one, the dearest first.

    Args:
        classes: The classes of GPUs to choose from.
        workload: The jobs.
        max_p95_s: The goal, in seconds.
        prices: The price of a GPU hour by class; without one, a class costs its gigabytes.

    Raises:
        UsageError: There are no jobs, or one is too large for all classes.
    """
    counts = _least(classes, workload)
    while (worst := _worst(counts, workload, max_p95_s)) is not None:
        grown = min(key for key in classes if key >= worst)
        counts[grown] += math.ceil(counts[grown] * _GROWTH) or 1
    while (cheaper := _cheaper(counts, classes, workload, max_p95_s, prices)) is not None:
        counts = cheaper
    chosen = +counts
    is_priced = all(key in prices for key in chosen)
    return Sizing(
        counts=dict(sorted(chosen.items())),
        p95_waits_s=_waits(chosen, workload),
        price_per_hour=sum(prices[k] * n for k, n in chosen.items()) if is_priced else None,
    )


def _least(classes: set[MemoryClass], workload: list[Arrival]) -> Counter[MemoryClass]:
    """Return the GPUs that do the work of each class, busy all the time."""
    if not workload:
        raise UsageError("the workload has no job")
    largest = max(job.memory_class for job in workload)
    if largest > max(classes):
        raise UsageError(f"a job needs a GPU of {largest}; the file of the fleet has none")
    span_s = max(job.arrival_s + job.duration_s for job in workload) - workload[0].arrival_s
    counts: Counter[MemoryClass] = Counter()
    for memory_class in sorted(classes, reverse=True):
        work_s = sum(job.duration_s for job in workload if _served_by(job, classes) >= memory_class)
        counts[memory_class] = max(0, math.ceil(work_s / span_s) - counts.total())
    return counts


def _cheaper(
    counts: Counter[MemoryClass],
    classes: set[MemoryClass],
    workload: list[Arrival],
    max_p95_s: float,
    prices: Mapping[MemoryClass, float],
) -> Counter[MemoryClass] | None:
    """Return a fleet that meets the goal without one of the GPUs, or with a cheaper one for it."""

    def price(memory_class: MemoryClass) -> float:
        return prices.get(memory_class, memory_class.value)

    for given in sorted(+counts, key=price, reverse=True):
        fewer = counts - Counter({given: 1})
        cheaper = sorted((key for key in classes if price(key) < price(given)), key=price)
        for other in (fewer, *(fewer + Counter({key: 1}) for key in cheaper)):
            if _holds(other, workload) and _worst(other, workload, max_p95_s) is None:
                return other
    return None


def _served_by(job: Arrival, classes: set[MemoryClass]) -> MemoryClass:
    return min(key for key in classes if key >= job.memory_class)


def _holds(counts: Counter[MemoryClass], workload: list[Arrival]) -> bool:
    return max(counts) >= max(job.memory_class for job in workload) if +counts else False


def _worst(
    counts: Counter[MemoryClass], workload: list[Arrival], max_p95_s: float
) -> MemoryClass | None:
    """Return the class whose jobs wait longest; None if the fleet meets the goal."""
    waits = _waits(counts, workload)
    worst = max(waits, key=waits.__getitem__)
    return worst if waits[worst] > max_p95_s else None


def _waits(counts: Counter[MemoryClass], workload: list[Arrival]) -> dict[MemoryClass, float]:
    by_class: dict[MemoryClass, list[Run]] = {}
    for run in simulate(PRODUCTION, sorted(counts.elements()), workload):
        by_class.setdefault(run.job.memory_class, []).append(run)
    return {key: p95_wait_s(runs) for key, runs in sorted(by_class.items())}
