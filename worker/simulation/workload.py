"""Workloads and fleets for simulations: read from files, or drawn at random.

Knows files and distributions; must not know queues or policies.
"""

import csv
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from routing.classes import MemoryClass, smallest_class_holding
from tasks.errors import Problem, UsageError

T = TypeVar("T")
_Row = dict[str, str]

FLEET_COLUMNS = ("class", "count")

# Half of the jobs take less than this, a twentieth takes more than four and a half times as much.
_MEDIAN_S = 2400.0
_SIGMA = 0.9
_TENANTS = 8
# Work of a class over that of its GPUs' share: two of FLUX's three presets go to the 40 GB class,
# one to that of 80, so that the fleet's largest GPUs have some room for others' jobs.
_DEMAND = {MemoryClass.GB40: 1.2, MemoryClass.GB80: 0.8}


@dataclass(frozen=True)
class Arrival:
    """A job of a workload: its GPU stages as one.

    Attributes:
        arrival_s: When it comes, in seconds from the beginning.
        duration_s: How long it holds a GPU.
        needed_gib: GPU memory that it needs.
        tenant: Whose it is.
    """

    arrival_s: float
    duration_s: float
    needed_gib: float
    tenant: str

    @property
    def memory_class(self) -> MemoryClass:
        """The smallest class that holds it."""
        found = smallest_class_holding(self.needed_gib)
        assert found is not None  # checked where it was made
        return found


WORKLOAD_COLUMNS = tuple(field.name for field in fields(Arrival))


def read_workload(path: Path) -> list[Arrival]:
    """The jobs of a CSV file with the columns arrival_s, duration_s, needed_gib and tenant.

    Raises:
        UsageError: Names every problem of the file.
    """
    return sorted(_rows(path, WORKLOAD_COLUMNS, _arrival), key=lambda job: job.arrival_s)


def read_fleet(path: Path) -> list[MemoryClass]:
    """The GPUs of a CSV file with the columns class (such as 24gb) and count.

    Raises:
        UsageError: Names every problem of the file.
    """
    fleet = [gpu for gpus in _rows(path, FLEET_COLUMNS, _gpus) for gpu in gpus]
    if not fleet:
        raise UsageError(f"{path}: there is no GPU in it")
    return sorted(fleet)


def write_workload(path: Path, jobs: list[Arrival]) -> None:
    """Write a workload as ``read_workload`` reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(WORKLOAD_COLUMNS)
        for job in jobs:
            times = (f"{job.arrival_s:.3f}", f"{job.duration_s:.3f}", f"{job.needed_gib:.3f}")
            writer.writerow([*times, job.tenant])


def draw_workload(fleet: list[MemoryClass], count: int, load: float, seed: int) -> list[Arrival]:
    """A workload that keeps a fleet busy to ``load`` of its time.

    - Arrivals are a Poisson process.
    - Durations are lognormal, median 40 minutes, sigma 0.9 (mean 60 minutes).
    - A job's class is drawn in proportion to the fleet's GPUs of each class, but for a fifth more
      of 40 GB and a fifth less of 80; its memory is uniform between the class below and its own.
    - Tenants are drawn by Zipf's law: the n-th of eight sends 1/n as many jobs as the first.

    Args:
        fleet: The GPUs.
        count: How many jobs.
        load: Work that arrives over work that the fleet can do, above 0.
        seed: The same gives the same.
    """
    chance = random.Random(seed)
    weights = {c: n * _DEMAND.get(c, 1.0) for c, n in sorted(Counter(fleet).items())}
    mean_s = _MEDIAN_S * math.exp(_SIGMA**2 / 2)
    rate = load * len(fleet) / mean_s
    tenants = [f"tenant-{n}" for n in range(1, _TENANTS + 1)]
    shares = [1 / n for n in range(1, _TENANTS + 1)]
    now, jobs = 0.0, []
    for _ in range(count):
        now += chance.expovariate(rate)
        [chosen] = chance.choices(list(weights), list(weights.values()))
        below = max((c.floor_gib for c in MemoryClass if c < chosen), default=2.0)
        jobs.append(
            Arrival(
                arrival_s=now,
                duration_s=chance.lognormvariate(math.log(_MEDIAN_S), _SIGMA),
                needed_gib=chance.uniform(below + 0.01, chosen.floor_gib),
                tenant=chance.choices(tenants, shares)[0],
            )
        )
    return jobs


def _arrival(row: _Row) -> Arrival:
    at, lasts, needed = (float(row[name]) for name in WORKLOAD_COLUMNS[:3])
    if not (math.isfinite(at) and at >= 0 and math.isfinite(lasts) and lasts > 0 and needed > 0):
        raise ValueError("times and memory are positive numbers")
    if smallest_class_holding(needed) is None:
        raise ValueError(f"no memory class holds {needed:g} GiB")
    return Arrival(at, lasts, needed, row["tenant"])


def _gpus(row: _Row) -> list[MemoryClass]:
    known = {str(memory_class): memory_class for memory_class in MemoryClass}
    if row["class"] not in known:
        raise ValueError(f"{row['class']!r} is no memory class; the classes are {', '.join(known)}")
    return [known[row["class"]]] * int(row["count"])


def _rows(path: Path, columns: tuple[str, ...], parse: Callable[[_Row], T]) -> list[T]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                problem = f"has no column {', '.join(missing)}; it needs {', '.join(columns)}"
                raise UsageError(f"{path}: {problem}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: {error}") from error
    problems = list(_problems(path, rows, parse))
    if problems:
        raise UsageError("\n".join(map(str, problems)))
    return [parse(row) for row in rows]


def _problems(path: Path, rows: list[_Row], parse: Callable[[_Row], object]) -> Iterator[Problem]:
    for number, row in enumerate(rows, start=2):  # the first line names the columns
        try:
            parse(row)
        except (TypeError, ValueError) as error:
            yield Problem(f"{path}:{number}", str(error))
