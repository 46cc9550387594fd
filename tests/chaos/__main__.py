"""Many runs by command: ``python -m tests.chaos --runs 200 --seed N [--report FILE]``.

Each run is one job on a running cluster of two hosts, with one to three faults. The same seed gives
the same faults; their exact moments depend on the machine. Ctrl-C ends the runs early and reports
them.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.results import write_section
from tests.chaos.cluster import TIMEOUT_S, Cluster
from tests.chaos.faults import ALL
from tests.chaos.runs import CHECKPOINT_EVERY, BrokenPromiseError, Outcome, new_jobs, run
from worker.miniature.dataset import draw_dataset


def main() -> int:
    """Run jobs, print a line for each, and report.

    Returns:
        The exit code: 1 if a promise was broken.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--faults", help="only faults whose names contain this")
    parser.add_argument("--long", action="store_true", help="also faults that take a minute")
    parser.add_argument("--report", type=Path, help="a Markdown file to write the result into")
    arguments = parser.parse_args()
    outcomes, broken = [], []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, Cluster(Path(name)) as cluster:
        faults = [
            fault
            for fault in ALL
            if (arguments.faults or "") in fault.name
            and (arguments.long or not fault.takes_long)
            and (cluster.disk_is_small or not fault.needs_small_disk)
            and (cluster.store_can_be_slow or not fault.needs_slow_store)
        ]
        if not cluster.disk_is_small:
            print("skipped the fault of a full disk: it needs Linux and root", flush=True)
        if not cluster.store_can_be_slow:
            print("skipped the fault of a slow store: it needs Linux and a C compiler", flush=True)
        model, images = prepare(Path(name))
        jobs = new_jobs(cluster, model, images)
        with suppress(KeyboardInterrupt):
            for number in range(arguments.runs):
                chance = random.Random(f"{arguments.seed} {number}")
                chosen = chance.sample(faults, min(len(faults), chance.choice((1, 1, 2, 3))))
                try:
                    outcomes.append(run(cluster, jobs, chosen, chance))
                    print(f"run {number}: {outcomes[-1]}", flush=True)
                except BrokenPromiseError as error:
                    broken.append(f"run {number}: {str(error).splitlines()[0]}")
                    print(f"run {number} BROKE A PROMISE: {error}", flush=True)
                    cluster.heal()
    command = f"--runs {arguments.runs} --seed {arguments.seed}"
    command += f" --faults '{arguments.faults}'" if arguments.faults else ""
    command += " --long" if arguments.long else ""
    report = _report(command, outcomes, broken, time.monotonic() - began)
    print(report)
    if arguments.report:
        write_section(arguments.report, "chaos", report)
    return 1 if broken else 0


def prepare(folder: Path) -> tuple[Path, Path]:
    """A tiny base model and some images."""
    model, images = folder / "model", folder / "images"
    command = [sys.executable, "-P", "-m", "worker.trainer.tiny_models", str(model)]
    subprocess.run(command, check=True, capture_output=True)
    draw_dataset(images)
    return model, images


def _report(command: str, outcomes: list[Outcome], broken: list[str], seconds: float) -> str:
    struck = Counter(name.partition(" at ")[0] for outcome in outcomes for name in outcome.faults)
    resumed = [
        outcome.resumed_after_s / TIMEOUT_S for outcome in outcomes if outcome.resumed_after_s
    ]
    lost = [outcome.steps_lost for outcome in outcomes if outcome.steps_lost is not None]
    total = len(outcomes) + len(broken)
    lines = [
        "## Chaos",
        "",
        f"`python -m tests.chaos {command}`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores, {seconds / 60:.0f} minutes, visibility timeout {TIMEOUT_S:g} s.",
        "",
        f"- Runs that kept every promise: {len(outcomes)} of {total}; in "
        f"{sum(not outcome.faults for outcome in outcomes)} the job ended before a fault struck.",
        f"- Stage starts: {sum(outcome.starts for outcome in outcomes)}.",
    ]
    if resumed:
        lines.append(
            f"- From the fault to the next step, if training restarted: median "
            f"{statistics.median(resumed):.1f}, worst {max(resumed):.1f} visibility timeouts, "
            f"including the start of the trainer and later faults of the run ({len(resumed)})."
        )
    if lost:
        lines.append(f"- Steps lost: at most {max(lost)}; a checkpoint every {CHECKPOINT_EVERY}.")
    lines += ["", "| fault | times |", "| --- | --- |"]
    lines += [f"| {name} | {count} |" for name, count in sorted(struck.items())]
    lines += ["", *(f"- Broken: {problem}" for problem in broken)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
