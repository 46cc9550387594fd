"""Simulate a fleet under every policy, and report how long jobs wait."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.table import Table

from routing.classes import MemoryClass
from tasks.errors import UsageError
from worker.simulation.simulator import POLICIES, PRODUCTION, Run, min_makespan_s, simulate
from worker.simulation.workload import Arrival

Report = dict[str, dict[str, float]]

_HEADINGS = ("mean wait, min", "median", "95 %")
_MINUTE_S = 60.0


class Simulation:
    """The runs of one workload on one fleet, under every policy.

    Args:
        fleet: The memory class of each GPU.
        workload: The jobs.

    Raises:
        UsageError: There are no jobs, or one is too large for the fleet.
    """

    def __init__(self, fleet: list[MemoryClass], workload: list[Arrival]) -> None:
        _check(fleet, workload)
        self._fleet, self._workload = fleet, workload
        self._runs = {policy.name: simulate(policy, fleet, workload) for policy in POLICIES}
        self._reports = {name: self._report(runs) for name, runs in self._runs.items()}

    def document(self) -> dict[str, Report]:
        """Return the report of each policy as JSON."""
        return self._reports

    def tables(self) -> list[Table]:
        """Compare the policies; then show this project's policy by class and tenant."""
        headings = ("", *_HEADINGS, "utilization", "makespan / bound")
        policies = Table(*headings, title=f"{len(self._workload)} jobs on {len(self._fleet)} GPUs")
        for name, report in self._reports.items():
            fleet = report["fleet"]
            shares = (f"{fleet['utilization']:.2f}", f"{fleet['makespan_over_bound']:.2f}")
            policies.add_row(name, *_minutes(report["all"]), *shares)
        waits = Table("", "jobs", *_HEADINGS, title=PRODUCTION.name)
        for part, values in self._reports[PRODUCTION.name].items():
            if part not in ("all", "fleet"):
                waits.add_row(part, str(int(values["jobs"])), *_minutes(values))
        return [policies, waits]

    def plot(self, path: Path) -> None:
        """Plot the cumulative distribution of waits, one line per policy.

        Raises:
            UsageError: The file cannot be written, or its name has no image type.
        """
        from matplotlib.figure import Figure  # an extra

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for name, members in self._runs.items():
            waits = sorted(run.wait_s / _MINUTE_S for run in members)
            axes.step(waits, [(i + 1) / len(waits) for i in range(len(waits))], label=name)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        axes.set_xlabel("wait for a GPU, minutes")
        axes.set_ylabel("share of the jobs that waited no longer")
        axes.grid(alpha=0.3)
        axes.legend()
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--plot: cannot write {path}: {reason}") from error

    def _report(self, runs: list[Run]) -> Report:
        ended_s = max(run.ended_s for run in runs)
        busy_s = sum(job.duration_s for job in self._workload)
        report = {
            "all": _wait(runs),
            "fleet": {
                "utilization": busy_s / (ended_s * len(self._fleet)),
                "makespan_over_bound": ended_s / min_makespan_s(self._fleet, self._workload),
            },
        }
        report |= _by(lambda run: str(run.job.memory_class), runs)
        report |= _by(lambda run: run.job.tenant, runs)
        return report


def _check(fleet: list[MemoryClass], workload: list[Arrival]) -> None:
    if not workload:
        raise UsageError("the workload has no job")
    too_large = [job for job in workload if job.memory_class > max(fleet)]
    if too_large:
        needed = max(job.needed_gib for job in too_large)
        raise UsageError(
            f"jobs of the workload ({len(too_large)}) need up to {needed:.1f} GiB; "
            f"the fleet's largest class is {max(fleet)}"
        )


def _by(group: Callable[[Run], str], runs: list[Run]) -> Report:
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.job.memory_class, run.job.tenant)):
        groups.setdefault(group(run), []).append(run)
    return {name: _wait(members) for name, members in groups.items()}


def p95_wait_s(runs: Iterable[Run]) -> float:
    """Return the wait that 95 % of the runs do not exceed, in seconds."""
    waits = sorted(run.wait_s for run in runs)
    return waits[int(len(waits) * 0.95)]


def _wait(runs: Sequence[Run]) -> dict[str, float]:
    waits = sorted(run.wait_s for run in runs)
    return {
        "jobs": len(waits),
        "mean_wait_s": statistics.fmean(waits),
        "p50_wait_s": waits[len(waits) // 2],
        "p95_wait_s": p95_wait_s(runs),
    }


def _minutes(waits: dict[str, float]) -> tuple[str, ...]:
    names = ("mean_wait_s", "p50_wait_s", "p95_wait_s")
    return tuple(f"{waits[name] / _MINUTE_S:.1f}" for name in names)
