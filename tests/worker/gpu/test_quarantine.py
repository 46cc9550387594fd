from typing import Any

import pytest

from worker.gpu import quarantine

HOST = "pid:[4026531836]"
MINE = {100}


def judged(free_mib: int, needed_mib: int, own: set[int], **processes: int | None) -> str | None:
    held = {name.removeprefix("p"): mib for name, mib in processes.items()}
    return quarantine._judged({"free_mib": free_mib, "processes": held}, needed_mib, own)


@pytest.fixture(params=[HOST, "pid:[1]"], ids=["host", "container"])
def container(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(quarantine, "_pid_namespace", lambda: request.param)
    return bool(request.param != HOST)


def test_an_empty_card_takes_what_fits(container: bool) -> None:
    assert judged(40000, 40000, set()) is None
    problem = judged(39999, 40000, set())
    assert problem is not None
    assert problem.endswith("the job needs 40000, and no process is told to hold the rest")


def test_what_the_kept_trainer_holds_counts_as_free(container: bool) -> None:
    assert judged(1000, 40000, MINE, p100=39000) is None


def test_another_programs_process_is_a_fault_where_it_can_be_told(container: bool) -> None:
    problem = judged(40000, 30000, MINE, p100=100, p200=None)
    expected = None if container else "it is used by process 200, which is not this worker's"
    assert problem == expected


def test_a_kept_trainer_that_holds_too_little_is_told_with_the_numbers(container: bool) -> None:
    if not container:
        assert judged(1000, 40000, MINE, p100=2000) == "3000 MiB are free and the job needs 40000"


def test_the_newest_report_counts_and_none_is_none() -> None:
    reports = quarantine.GpuFaultPipe()
    assert reports.receive(0) is None
    reports.send("one", 1)
    reports.send("two" + "x" * 5000, 2)
    reason, needed_mib = reports.receive(0) or ("", 0)
    assert (reason[:4], len(reason), needed_mib) == ("twox", 1000, 2)
    assert reports.receive(0) is None


def test_an_emulated_gpu_takes_every_job() -> None:
    closed: list[Any] = []
    gate = quarantine.make_gate(None, quarantine.GpuFaultPipe(), lambda: closed.append(1))
    gate(10_000.0)
    assert closed == []
