import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from routing.classes import MemoryClass
from routing.queues import served_queues
from tasks.errors import UsageError
from worker.cli.app import cli
from worker.simulation.simulator import POLICIES, PRODUCTION, Policy, Run, min_makespan_s, simulate
from worker.simulation.workload import (
    Arrival,
    draw_workload,
    read_fleet,
    read_workload,
    write_workload,
)

GB8, GB24, GB40, GB80 = (MemoryClass(size) for size in (8, 24, 40, 80))
FLEET = [GB8] * 4 + [GB24] * 6 + [GB40] * 2 + [GB80] * 2
LATE_SPILL, DEDICATED, FIFO, ROUND_ROBIN, STOCK = POLICIES[1:]


def job(arrival_s: float, duration_s: float, memory_class: MemoryClass) -> Arrival:
    return Arrival(arrival_s, duration_s, memory_class.floor_gib, "a")


def waits(policy: Policy, fleet: list[MemoryClass], *jobs: Arrival) -> dict[Arrival, float]:
    return {run.job: run.wait_s for run in simulate(policy, fleet, list(jobs))}


def test_a_gpu_takes_its_own_class_first() -> None:
    running, small, big = job(0, 10, GB40), job(1, 10, GB8), job(2, 10, GB40)
    assert waits(PRODUCTION, [GB40], running, small, big) == {running: 0, big: 8, small: 19}


def test_only_dedicated_gpus_refuse_smaller_jobs() -> None:
    first, second = job(0, 10, GB8), job(1, 10, GB8)
    assert waits(DEDICATED, [GB8, GB40], first, second)[second] == 9
    assert waits(PRODUCTION, [GB8, GB40], first, second)[second] == 0


def test_late_spill_delays_small_jobs_on_larger_gpus() -> None:
    first, second = job(0, 1000, GB8), job(1, 10, GB8)
    waits_s = waits(LATE_SPILL, [GB8, GB40], first, second)
    assert waits_s[second] == pytest.approx(600, abs=0.01)


def test_late_spill_saves_less_than_a_tenth_of_the_wait(
    workloads: list[list[Arrival]],
) -> None:
    assert mean_wait_s(LATE_SPILL, workloads) > 0.9 * mean_wait_s(PRODUCTION, workloads)


def test_the_head_of_one_fifo_blocks_other_jobs() -> None:
    big, other, small = job(0, 10, GB40), job(1, 10, GB40), job(2, 10, GB8)
    assert waits(FIFO, [GB8, GB40], big, other, small)[small] == 8
    assert waits(PRODUCTION, [GB8, GB40], big, other, small)[small] == 0


def test_stock_celery_prefetches_jobs_of_idle_workers() -> None:
    jobs = [job(0, 100, GB8), job(0, 1, GB8), job(0, 1, GB8), job(0, 1, GB8)]
    stock, ours = waits(STOCK, [GB8, GB8], *jobs), waits(PRODUCTION, [GB8, GB8], *jobs)
    assert max(stock.values()) >= 100
    assert max(ours.values()) == 2


@given(st.integers(0, 10_000), st.sampled_from(POLICIES), st.floats(0.1, 2))
def test_every_job_runs_once_alone_on_a_gpu_that_holds_it(
    seed: int, policy: Policy, load: float
) -> None:
    jobs = draw_workload(FLEET, 60, load, seed)
    runs = simulate(policy, FLEET, jobs)
    assert sorted((run.job for run in runs), key=lambda it: it.arrival_s) == jobs
    by_gpu: dict[int, list[Run]] = {}
    for run in runs:
        assert run.wait_s >= 0
        assert FLEET[run.gpu] >= run.job.memory_class
        by_gpu.setdefault(run.gpu, []).append(run)
    for members in by_gpu.values():
        assert all(one.ended_s <= two.started_s for one, two in pairwise(members))
    assert max(run.ended_s for run in runs) >= min_makespan_s(FLEET, jobs) * (1 - 1e-9)


@pytest.fixture(scope="module")
def workloads() -> list[list[Arrival]]:
    return [draw_workload(FLEET, 2000, 0.8, seed) for seed in range(1, 9)]


def mean_wait_s(policy: Policy, workloads: list[list[Arrival]], least: MemoryClass = GB8) -> float:
    runs = (run for jobs in workloads for run in simulate(policy, FLEET, jobs))
    return fmean(run.wait_s for run in runs if run.job.memory_class >= least)


def test_production_beats_the_others_on_a_mixed_fleet(workloads: list[list[Arrival]]) -> None:
    ours = mean_wait_s(PRODUCTION, workloads)
    assert ours <= 0.6 * mean_wait_s(DEDICATED, workloads)
    assert ours <= 0.35 * mean_wait_s(ROUND_ROBIN, workloads)
    assert ours <= 0.35 * mean_wait_s(STOCK, workloads)
    assert ours <= 0.05 * mean_wait_s(FIFO, workloads)


def test_the_largest_jobs_wait_less_too(workloads: list[list[Arrival]]) -> None:
    ours, dedicated = (mean_wait_s(it, workloads, GB40) for it in (PRODUCTION, DEDICATED))
    assert ours <= 0.6 * dedicated


def p95_s(runs: list[Run], tenant: str) -> float:
    waits = sorted(run.wait_s for run in runs if run.job.tenant == tenant)
    return waits[int(len(waits) * 0.95)]


def test_no_tenant_waits_over_three_times_its_fair_share(
    workloads: list[list[Arrival]],
) -> None:
    """With a fair share, all tenants send equally many jobs of the same kind."""
    for jobs in workloads:
        tenants = sorted({job.tenant for job in jobs})
        equal = [replace(job, tenant=tenants[i % len(tenants)]) for i, job in enumerate(jobs)]
        fair = simulate(PRODUCTION, FLEET, equal)
        runs = simulate(PRODUCTION, FLEET, jobs)
        fair_s = fmean(p95_s(fair, tenant) for tenant in tenants)
        assert all(p95_s(runs, tenant) <= 3 * fair_s for tenant in tenants)


def test_a_flood_of_one_tenant_does_not_stop_the_others(
    workloads: list[list[Arrival]],
) -> None:
    jobs = workloads[0][:600]
    flood = [replace(job, arrival_s=0.0, tenant="flood") for job in workloads[1][:1000]]
    with_queues, without = (
        simulate(replace(PRODUCTION, tenant_queues=enabled), FLEET, [*flood, *jobs])
        for enabled in (True, False)
    )
    ours, theirs = (
        fmean(run.wait_s for run in runs if run.job.tenant != "flood")
        for runs in (with_queues, without)
    )
    assert ours < 0.1 * theirs


def test_production_uses_the_real_queues() -> None:
    assert PRODUCTION.serves is served_queues
    assert (PRODUCTION.order, PRODUCTION.prefetch) == ("priority", 1)
    assert PRODUCTION.tenant_queues


def test_random_workloads_have_the_stated_distribution(tmp_path: Path) -> None:
    jobs = draw_workload(FLEET, 20_000, 0.8, seed=3)
    assert fmean(it.duration_s for it in jobs) == pytest.approx(3600, rel=0.05)
    offered = sum(it.duration_s for it in jobs) / (jobs[-1].arrival_s * len(FLEET))
    assert offered == pytest.approx(0.8, rel=0.05)
    for memory_class in (GB8, GB24, GB40, GB80):
        share = sum(it.memory_class == memory_class for it in jobs) / len(jobs)
        demand = {GB40: 1.2, GB80: 0.8}.get(memory_class, 1.0)
        expected = demand * FLEET.count(memory_class) / len(FLEET)
        assert share == pytest.approx(expected, rel=0.1)
    first = sum(it.tenant == "tenant-1" for it in jobs) / sum(
        it.tenant == "tenant-4" for it in jobs
    )
    assert first == pytest.approx(4, rel=0.15)
    assert draw_workload(FLEET, 50, 0.8, seed=3) == jobs[:50]
    write_workload(tmp_path / "w.csv", jobs[:50])
    again = read_workload(tmp_path / "w.csv")
    assert [it.tenant for it in again] == [it.tenant for it in jobs[:50]]
    assert again[49].arrival_s == pytest.approx(jobs[49].arrival_s, abs=1e-3)


def test_files_are_refused_with_all_problems_by_line(tmp_path: Path) -> None:
    workload, fleet = tmp_path / "w.csv", tmp_path / "f.csv"
    workload.write_text("arrival_s,duration_s,needed_gib,tenant\n0,-1,8,a\n0,1,500,a\n0,x,8,a\n")
    with pytest.raises(UsageError) as caught:
        read_workload(workload)
    message = str(caught.value)
    assert f"{workload}:2" in message
    assert f"{workload}:3: no memory class holds 500 GiB" in message
    assert f"{workload}:4: could not convert" in message
    fleet.write_text("class,count\n7gb,1\n40gb,two\n")
    with pytest.raises(UsageError, match="'7gb' is not a memory class") as caught:
        read_fleet(fleet)
    assert f"{fleet}:3" in str(caught.value)
    fleet.write_text("kind\n40gb\n")
    with pytest.raises(UsageError, match="missing column class, count"):
        read_fleet(fleet)
    with pytest.raises(UsageError, match="No such file"):
        read_fleet(tmp_path / "none.csv")


def test_simulate_reports_and_plots(tmp_path: Path) -> None:
    fleet, image, saved = tmp_path / "f.csv", tmp_path / "w.png", tmp_path / "w.csv"
    fleet.write_text("class,count\n8gb,2\n40gb,1\n")
    options = ["simulate", str(fleet), "--jobs", "100", "--json"]
    first = CliRunner().invoke(cli, [*options, "--plot", str(image), "--save", str(saved)])
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert set(document) == {policy.name for policy in POLICIES}
    assert document["training-worker"]["all"]["jobs"] == 100
    assert {"8gb", "40gb", "tenant-1"} <= set(document["training-worker"])
    with Image.open(image) as drawn:
        assert drawn.size == (960, 600)
    again = CliRunner().invoke(cli, [*options, "--workload", str(saved)])
    mean = "mean_wait_s"
    assert json.loads(again.stdout)["one FIFO"]["all"][mean] == pytest.approx(
        document["one FIFO"]["all"][mean], rel=1e-3
    )


def test_a_too_large_job_is_refused(tmp_path: Path) -> None:
    fleet, workload = tmp_path / "f.csv", tmp_path / "w.csv"
    fleet.write_text("class,count\n8gb,2\n")
    write_workload(workload, [job(0, 1, GB40)])
    done = CliRunner().invoke(cli, ["simulate", str(fleet), "--workload", str(workload), "--json"])
    assert done.exit_code == 2
    assert "the fleet's largest class is 8gb" in done.output
