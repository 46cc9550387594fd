import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from routing.classes import MemoryClass
from tasks.errors import UsageError
from worker.cli.app import cli
from worker.simulation.report import p95_wait_s
from worker.simulation.simulator import PRODUCTION, simulate
from worker.simulation.sizing import smallest_fleet
from worker.simulation.workload import Arrival, draw_workload

GB8, GB24, GB40, GB80 = (MemoryClass(size) for size in (8, 24, 40, 80))
FLEET = [GB8, GB24, GB24, GB40, GB80]
PRICES = {GB8: 0.2, GB24: 0.6, GB40: 1.8, GB80: 3.0}


def longest_p95_s(gpus: list[MemoryClass], jobs: list[Arrival]) -> float:
    runs = simulate(PRODUCTION, sorted(gpus), jobs)
    classes = {run.job.memory_class for run in runs}
    return max(p95_wait_s([run for run in runs if run.job.memory_class == it]) for it in classes)


@pytest.mark.parametrize("minutes", [5, 60])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_gpu_of_the_fleet_can_be_missed_or_be_cheaper(minutes: int, seed: int) -> None:
    jobs, goal_s = draw_workload(FLEET, 150, 0.9, seed), minutes * 60.0
    sizing = smallest_fleet(set(FLEET), jobs, goal_s, PRICES)
    counts = Counter(sizing.counts)
    assert longest_p95_s([*counts.elements()], jobs) == max(sizing.p95_waits_s.values()) <= goal_s
    assert sizing.price_per_hour == pytest.approx(sum(PRICES[it] for it in counts.elements()))
    largest = max(job.memory_class for job in jobs)
    for removed, added in product(counts, (None, *FLEET)):
        other = counts - Counter({removed: 1}) + Counter({added: 1} if added else {})
        is_cheaper = added is None or PRICES[added] < PRICES[removed]
        if is_cheaper and max(other) >= largest:
            assert longest_p95_s([*other.elements()], jobs) > goal_s


def test_jobs_of_a_missing_class_use_the_next_larger() -> None:
    jobs = [Arrival(0, 60, GB24.floor_gib, "a"), Arrival(0, 60, GB24.floor_gib, "b")]
    assert smallest_fleet({GB40}, jobs, 0, {}).counts == {GB40: 2}
    assert smallest_fleet({GB8, GB40}, jobs, 60, {}).counts == {GB40: 1}


def test_what_no_class_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="a job needs a GPU of 80gb"):
        smallest_fleet({GB40}, [Arrival(0, 60, GB80.floor_gib, "a")], 60, {})
    with pytest.raises(UsageError, match="the workload has no job"):
        smallest_fleet({GB40}, [], 60, {})


def test_the_command_prints_a_fleet_with_its_price(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("class,count\n24gb,1\n40gb,1\n")
    options = ["simulate", str(fleet), "--jobs", "50", "--p95-wait", "30"]
    ran = CliRunner().invoke(
        cli, [*options, "--json"], env={"TRAINING_GPU_PRICES": "24gb=1,40gb=2"}
    )
    document = json.loads(ran.stdout)
    gpus = document["gpus"]
    assert document["price_per_hour"] == gpus.get("24gb", 0) + 2 * gpus.get("40gb", 0)
    assert max(document["p95_wait_s"].values()) <= 1800
    shown = CliRunner().invoke(cli, options).stdout
    assert "smallest fleet" in shown
    assert "40gb" in shown
    refused = CliRunner().invoke(cli, [*options, "--plot", str(tmp_path / "waits.png")])
    assert "leave it or --p95-wait out" in str(refused.output)
    assert refused.exit_code == 2
