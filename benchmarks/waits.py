"""Simulated waits for a GPU with the fleet's queues and with other policies.

    python -m benchmarks.waits [--report benchmarks/RESULTS.md]

Means over eight workloads of 2,000 jobs that ``training-worker simulate`` draws, load 0.8, on 14
GPUs (4 of 8 GB, 6 of 24, 2 of 40, 2 of 80). Goals: at most 0.6 of the wait in dedicated pools, for
all jobs and for jobs of 40 GB and more, and at most 0.35 of the wait with round-robin order.
"""

from datetime import UTC, datetime
from statistics import fmean

from benchmarks.results import parser_of, write_section
from routing.classes import MemoryClass
from worker.simulation.simulator import POLICIES, PRODUCTION, Run, simulate
from worker.simulation.workload import draw_workload

FLEET = [MemoryClass(size) for size in (8, 8, 8, 8, *[24] * 6, 40, 40, 80, 80)]
_SEEDS = range(1, 9)


def main() -> None:
    """Simulate and print the waits."""
    report_to = parser_of(__doc__).parse_args().report
    workloads = [draw_workload(FLEET, 2000, 0.8, seed) for seed in _SEEDS]
    waits = {
        policy.name: _means([run for jobs in workloads for run in simulate(policy, FLEET, jobs)])
        for policy in POLICIES
    }
    own = waits[PRODUCTION.name]
    lines = [
        "## Waits",
        "",
        f"`python -m benchmarks.waits`, {datetime.now(UTC):%Y-%m-%d}, simulated; mean minutes, and "
        "the ratio of training-worker to each.",
        "",
        "| policy | all jobs | 40 GB and more | ratio | ratio, 40 GB and more |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (every, large) in waits.items():
        ratios = f"{own[0] / every:.2f} | {own[1] / large:.2f}"
        lines.append(f"| {name} | {every:.1f} | {large:.1f} | {ratios} |")
    report = "\n".join(lines) + "\n"
    print(report)
    if report_to:
        write_section(report_to, "waits", report)


def _means(runs: list[Run]) -> tuple[float, float]:
    """Return the mean minutes of all jobs, and of jobs of 40 GB and more."""
    large = [run.wait_s for run in runs if run.job.memory_class >= MemoryClass.GB40]
    return fmean(run.wait_s for run in runs) / 60, fmean(large) / 60


if __name__ == "__main__":
    main()
