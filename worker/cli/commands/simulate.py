"""``training-worker simulate``."""

import importlib
import statistics
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from routing.classes import MemoryClass
from tasks.errors import InvalidJobError, NotInstalledError, Problem
from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout
from worker.simulation.simulator import OURS, POLICIES, Run, least_makespan_s, simulate
from worker.simulation.workload import (
    Arrival,
    draw_workload,
    read_fleet,
    read_workload,
    write_workload,
)

Report = dict[str, dict[str, float]]
_HEADINGS = ("mean wait, min", "median", "95 %")
_MINUTE_S = 60.0


def run(
    settings: Settings,
    *,
    fleet_path: Path,
    workload_path: Path | None,
    jobs: int,
    load: float,
    seed: int,
    save: Path | None,
    plot: Path | None,
    json: bool,
) -> None:
    """Run a workload on a fleet that is not there, under our queues and others."""
    if plot is not None and find_spec("matplotlib") is None:
        raise NotInstalledError("Matplotlib", "plot")
    fleet = read_fleet(fleet_path)
    if workload_path is not None:
        workload = read_workload(workload_path)
    else:
        workload = draw_workload(fleet, jobs, load, seed)
    _check(fleet, workload)
    if save is not None:
        write_workload(save, workload)
    runs = {policy.name: simulate(policy, fleet, workload) for policy in POLICIES}
    reports = {name: _report(fleet, workload, of) for name, of in runs.items()}
    if plot is not None:
        importlib.import_module("worker.simulation.plots").plot_waits(runs, plot)
    if json:
        print_json(reports)
        return
    title = f"{len(workload)} jobs on {len(fleet)} GPUs"
    stdout.print(_policies(title, reports))
    ours = reports[OURS.name].items()
    parts = {part: of for part, of in ours if part not in ("all", "fleet")}
    stdout.print(_waits(OURS.name, parts))


def _check(fleet: list[MemoryClass], workload: list[Arrival]) -> None:
    if not workload:
        raise InvalidJobError([Problem("workload", "there is no job in it")])
    too_large = [job for job in workload if job.memory_class > max(fleet)]
    if too_large:
        needed = max(job.needed_gib for job in too_large)
        problem = (
            f"{len(too_large)} job(s) need up to {needed:.1f} GiB and the fleet's largest class is "
            f"{max(fleet)}"
        )
        raise InvalidJobError([Problem("workload", problem)])


def _report(fleet: list[MemoryClass], workload: list[Arrival], runs: list[Run]) -> Report:
    ended_s = max(run.ended_s for run in runs)
    report = {
        "all": _wait(runs),
        "fleet": {
            "utilisation": sum(job.duration_s for job in workload) / (ended_s * len(fleet)),
            "makespan_over_bound": ended_s / least_makespan_s(fleet, workload),
        },
    }
    for group in (lambda run: str(run.job.memory_class), lambda run: run.job.tenant):
        report |= _by(group, runs)
    return report


def _by(group: Callable[[Run], str], runs: list[Run]) -> Report:
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.job.memory_class, run.job.tenant)):
        groups.setdefault(group(run), []).append(run)
    return {name: _wait(of) for name, of in groups.items()}


def _wait(runs: Iterable[Run]) -> dict[str, float]:
    waits = sorted(run.wait_s for run in runs)
    return {
        "jobs": len(waits),
        "mean_wait_s": statistics.fmean(waits),
        "p50_wait_s": waits[len(waits) // 2],
        "p95_wait_s": waits[int(len(waits) * 0.95)],
    }


def _policies(title: str, reports: dict[str, Report]) -> Table:
    table = Table("", *_HEADINGS, "utilisation", "makespan / bound", title=title)
    for name, report in reports.items():
        fleet = report["fleet"]
        shares = (f"{fleet['utilisation']:.2f}", f"{fleet['makespan_over_bound']:.2f}")
        table.add_row(name, *_minutes(report["all"]), *shares)
    return table


def _waits(title: str, parts: Report) -> Table:
    table = Table("", "jobs", *_HEADINGS, title=title)
    for part, waits in parts.items():
        table.add_row(part, str(int(waits["jobs"])), *_minutes(waits))
    return table


def _minutes(waits: dict[str, float]) -> tuple[str, ...]:
    names = ("mean_wait_s", "p50_wait_s", "p95_wait_s")
    return tuple(f"{waits[name] / _MINUTE_S:.1f}" for name in names)
