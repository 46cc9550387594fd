from typing import Any

import pytest

from worker.gpu import quarantine
from worker.gpu.quarantine import GpuFault, GpuFaultPipe, make_gate

HOST = "pid:[4026531836]"
MINE = {100}


def judge(free_mib: int, needed_mib: int, own: set[int], **processes: int | None) -> str | None:
    held = {name.removeprefix("p"): mib for name, mib in processes.items()}
    return quarantine._why_unusable({"free_mib": free_mib, "processes": held}, needed_mib, own)


@pytest.fixture(params=[HOST, "pid:[1]"], ids=["host", "container"])
def container(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(quarantine, "_pid_namespace", lambda: request.param)
    return bool(request.param != HOST)


def test_an_empty_card_takes_a_job_that_fits(container: bool) -> None:
    assert judge(40000, 40000, set()) is None
    problem = judge(39999, 40000, set())
    assert problem is not None
    assert problem.endswith(
        "the job needs 40000, and the driver reports no process that holds the rest"
    )


def test_memory_of_the_kept_trainer_counts_as_free(container: bool) -> None:
    assert judge(1000, 40000, MINE, p100=39000) is None


def test_a_foreign_process_is_a_fault_outside_containers(container: bool) -> None:
    problem = judge(40000, 30000, MINE, p100=100, p200=None)
    expected = None if container else "it is used by process 200, which is not this worker's"
    assert problem == expected


def test_too_little_memory_is_reported_with_the_numbers(container: bool) -> None:
    if not container:
        assert judge(1000, 40000, MINE, p100=2000) == "3000 MiB are free and the job needs 40000"


def test_the_newest_fault_counts() -> None:
    pipe = GpuFaultPipe()
    assert pipe.receive(0) is None
    pipe.send(GpuFault("one", 1))
    pipe.send(GpuFault("two" + "x" * 5000, 2))
    fault = pipe.receive(0)
    assert fault is not None
    assert (fault.reason[:4], len(fault.reason), fault.needed_mib) == ("twox", 1000, 2)
    assert pipe.receive(0) is None


def test_an_emulated_gpu_takes_every_job() -> None:
    closed: list[Any] = []
    gate = make_gate(None, GpuFaultPipe(), lambda: closed.append(1))
    gate(10_000.0)
    assert closed == []
