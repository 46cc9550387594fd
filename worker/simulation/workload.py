"""Workloads and fleets of simulations: read from CSV files, or drawn at random."""

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

# Lognormal durations: half of the jobs take less than 40 minutes, one in twenty more than 3 hours.
_MEDIAN_S = 2400.0
_SIGMA = 0.9
_TENANTS = 8
# Work of a class divided by the share of its GPUs. Two of FLUX's three presets route to 40 GB and
# one to 80 GB, so the largest GPUs have capacity left for smaller jobs.
_DEMAND = {MemoryClass.GB40: 1.2, MemoryClass.GB80: 0.8}


@dataclass(frozen=True)
class Arrival:
    """A job of a workload; its GPU stages count as one.

    Attributes:
        arrival_s: Its arrival, in seconds from the beginning.
        duration_s: Seconds that it holds a GPU.
        needed_gib: GPU memory that it needs.
        tenant: Its tenant.
    """

    arrival_s: float
    duration_s: float
    needed_gib: float
    tenant: str

    @property
    def memory_class(self) -> MemoryClass:
        """The smallest memory class that holds it."""
        memory_class = smallest_class_holding(self.needed_gib)
        assert memory_class is not None  # read_workload and draw_workload check it
        return memory_class


WORKLOAD_COLUMNS = tuple(field.name for field in fields(Arrival))


def read_workload(path: Path) -> list[Arrival]:
    """Read jobs from a CSV file with the columns arrival_s, duration_s, needed_gib and tenant.

    Raises:
        UsageError: Names every problem of the file.
    """
    return sorted(_rows(path, WORKLOAD_COLUMNS, _arrival), key=lambda job: job.arrival_s)


def read_fleet(path: Path) -> list[MemoryClass]:
    """Read GPUs from a CSV file with the columns class (such as 24gb) and count.

    Raises:
        UsageError: Names every problem of the file.
    """
    fleet = [gpu for gpus in _rows(path, FLEET_COLUMNS, _gpus) for gpu in gpus]
    if not fleet:
        raise UsageError(f"{path}: the file has no GPU")
    return sorted(fleet)


def write_workload(path: Path, jobs: list[Arrival]) -> None:
    """Write a workload in the format of ``read_workload``.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(WORKLOAD_COLUMNS)
            for job in jobs:
                numbers = (job.arrival_s, job.duration_s, job.needed_gib)
                writer.writerow([*(f"{number:.3f}" for number in numbers), job.tenant])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def draw_workload(fleet: list[MemoryClass], count: int, load: float, seed: int) -> list[Arrival]:
    """Draw a random workload that keeps a fleet busy for ``load`` of its time.

    - Arrivals are a Poisson process.
    - Durations are lognormal, median 40 minutes, sigma 0.9 (mean 60 minutes).
    - Classes are in proportion to the fleet's GPUs of each class, with a fifth more of 40 GB and a
      fifth less of 80 GB; memory is uniform between the class below and the job's own.
    - Tenants follow Zipf's law: the n-th of eight sends 1/n as many jobs as the first.

    Args:
        fleet: The GPUs.
        count: Number of jobs.
        load: Arriving work divided by the fleet's capacity, above 0.
        seed: Seed of the random numbers.
    """
    rng = random.Random(seed)
    weights = {c: n * _DEMAND.get(c, 1.0) for c, n in sorted(Counter(fleet).items())}
    mean_s = _MEDIAN_S * math.exp(_SIGMA**2 / 2)
    rate = load * len(fleet) / mean_s
    tenants = [f"tenant-{n}" for n in range(1, _TENANTS + 1)]
    shares = [1 / n for n in range(1, _TENANTS + 1)]
    now, jobs = 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        [chosen] = rng.choices(list(weights), list(weights.values()))
        below = max((c.floor_gib for c in MemoryClass if c < chosen), default=2.0)
        jobs.append(
            Arrival(
                arrival_s=now,
                duration_s=rng.lognormvariate(math.log(_MEDIAN_S), _SIGMA),
                needed_gib=rng.uniform(below + 0.01, chosen.floor_gib),
                tenant=rng.choices(tenants, shares)[0],
            )
        )
    return jobs


def _arrival(row: _Row) -> Arrival:
    arrival_s, duration_s, needed_gib = (float(row[name]) for name in WORKLOAD_COLUMNS[:3])
    if not (0 <= arrival_s < math.inf and 0 < duration_s < math.inf and needed_gib > 0):
        raise ValueError("times and memory must be positive numbers")
    if smallest_class_holding(needed_gib) is None:
        raise ValueError(f"no memory class holds {needed_gib:g} GiB")
    return Arrival(arrival_s, duration_s, needed_gib, row["tenant"])


def _gpus(row: _Row) -> list[MemoryClass]:
    known = {str(memory_class): memory_class for memory_class in MemoryClass}
    if row["class"] not in known:
        raise ValueError(f"{row['class']!r} is not a memory class; use {', '.join(known)}")
    return [known[row["class"]]] * int(row["count"])


def _rows(path: Path, columns: tuple[str, ...], parse: Callable[[_Row], T]) -> list[T]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"{path}: missing column {', '.join(missing)}; "
                    f"the columns are {', '.join(columns)}"
                )
            rows = list(reader)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file in UTF-8: {error}") from error
    problems = list(_problems(path, rows, parse))
    if problems:
        raise UsageError("\n".join(map(str, problems)))
    return [parse(row) for row in rows]


def _problems(path: Path, rows: list[_Row], parse: Callable[[_Row], object]) -> Iterator[Problem]:
    for number, row in enumerate(rows, start=2):  # line 1 has the column names
        try:
            parse(row)
        except (TypeError, ValueError) as error:
            yield Problem(f"{path}:{number}", str(error))
