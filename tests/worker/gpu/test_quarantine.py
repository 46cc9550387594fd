import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from routing.queues import INVOKE
from tasks.app import make_app
from tasks.errors import TrainerError
from tasks.settings.settings import Settings
from tasks.stages.worker_context import GpuUnhealthy
from tests.nvml.machine import A100, T4, Machine
from tests.worker.trainer.runs_options import flux_request
from worker.context import make_context
from worker.gpu import quarantine
from worker.gpu.inventory import TorchBuild, declared_gpus
from worker.gpu.quarantine import GpuFault, GpuFaultPipe, GpuQuarantine, make_gate
from worker.periodic import PeriodicThread, ThreadWatch

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


def test_a_foreign_process_is_a_fault(container: bool) -> None:
    problem = judge(40000, 30000, MINE, p100=100, p200=None)
    both = "it is used by 2 processes, and this worker has one"
    assert problem == (
        both if container else "it is used by process 200, which is not this worker's"
    )
    assert (judge(40000, 30000, set(), p200=None) is None) == container


def test_too_little_memory_is_reported_with_the_numbers(container: bool) -> None:
    if not container:
        assert judge(1000, 40000, MINE, p100=2000) == "3000 MiB are free and the job needs 40000"


def test_every_fault_arrives() -> None:
    pipe = GpuFaultPipe()
    assert pipe.receive(0) == []
    pipe.send(GpuFault("one", 1))
    pipe.send(GpuFault("two" + "x" * 5000, in_computation=True))
    one, two = pipe.receive(0)
    assert one == GpuFault("one", 1)
    assert (two.reason[:4], len(two.reason), two.in_computation) == ("twox", 1000, True)
    assert pipe.receive(0) == []


class FakeConsumer:
    """Celery's consumer, as far as a quarantine uses it."""

    def __init__(self) -> None:
        queues = SimpleNamespace(consume_from={"gpu.40gb": None})
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=queues))
        self.cancelled: list[str] = []

    def call_soon(self, function: Callable[..., None], *args: str) -> None:
        function(*args)

    def cancel_task_queue(self, queue: str) -> None:
        self.cancelled.append(queue)


class Quarantined:
    """A quarantine whose thread does not run, and its effects."""

    def __init__(self, unsupported: str | None = None) -> None:
        self.pipe, self.consumer = GpuFaultPipe(), FakeConsumer()
        self.reasons: list[str | None] = []
        self.drained: list[bool] = []
        self.policy = GpuQuarantine(
            declared_gpus("40gb")[0],
            unsupported,
            self.pipe,
            self.reasons.append,
            lambda: self.drained.append(True),
            ThreadWatch(),
        )

    def fails(self) -> None:
        self.pipe.send(GpuFault("misaligned address", in_computation=True))
        self.policy._run_round()


@pytest.fixture
def quarantined(monkeypatch: pytest.MonkeyPatch) -> Quarantined:
    monkeypatch.setattr(PeriodicThread, "start", lambda _: None)
    made = Quarantined()
    made.policy.on_consumer_start(made.consumer)
    return made


def test_a_second_failure_within_a_day_quarantines_for_good(quarantined: Quarantined) -> None:
    quarantined.fails()
    assert quarantined.reasons == []
    quarantined.fails()
    [reason] = quarantined.reasons
    assert "failed twice within a day while it computed: misaligned address" in (reason or "")
    assert quarantined.consumer.cancelled == ["gpu.40gb"]
    assert quarantined.drained == [True]


def test_a_gpu_that_fails_in_two_trainers_is_quarantined(
    quarantined: Quarantined,
    tmp_path: Path,
    broker_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine, "_PARENT_REACTS_WITHIN_S", 0.0)
    trainer = tmp_path / "python"
    trainer.write_text("#!/bin/sh\necho 'CUDA error: misaligned address' >&2\nexit 1\n", "utf-8")
    trainer.chmod(0o700)
    settings = Settings(home=tmp_path, invoke_python=trainer)
    app = make_app(settings, broker_url)
    context = make_context(app, settings, broker_url, "here", None, quarantined.pipe)
    for _ in range(2):
        quarantined.policy._run_round()
        assert quarantined.reasons == []
        with pytest.raises(TrainerError, match="the GPU failed, and the trainer ended at once"):
            context.trainer.run(
                flux_request(engine=INVOKE), on_event=lambda _: None, stop_requested=lambda: False
            )
    quarantined.policy._run_round()
    [reason] = quarantined.reasons
    assert "failed twice within a day" in (reason or "")


def test_failures_of_different_days_are_no_reason(
    quarantined: Quarantined, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for day in range(3):
        now = day * 25 * 3600.0
        quarantined.fails()
    assert quarantined.reasons == []


def test_an_unsupported_gpu_is_quarantined_from_the_start() -> None:
    quarantined = Quarantined("it has compute capability 7.5")
    quarantined.policy.on_consumer_start(quarantined.consumer)
    assert quarantined.reasons == ["it has compute capability 7.5"]
    assert quarantined.consumer.cancelled == ["gpu.40gb"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(quarantine, "_pid_namespace", lambda: HOST)
    monkeypatch.setattr(quarantine, "_PARENT_REACTS_WITHIN_S", 0.0)
    monkeypatch.setattr(quarantine, "torch_build", lambda: TorchBuild("13.0", ("sm_75", "sm_80")))
    return machine


def test_the_gate_refuses_an_unsupported_gpu(machine: Machine) -> None:
    machine.has(T4)
    gate = make_gate(replace(declared_gpus("16gb")[0], uuid="GPU-t4"), GpuFaultPipe(), lambda: None)
    with pytest.raises(GpuUnhealthy, match=r"compute capability 7\.5"):
        gate(1.0)


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_gate_closes_the_kept_trainer_for_another_process(
    machine: Machine, is_shared: bool
) -> None:
    kept = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    foreign = f"process GPU-a100 {os.getppid()} 100" if is_shared else ""
    machine.has(A100, f"process GPU-a100 {kept.pid} 5000", foreign)

    def close() -> None:
        kept.communicate(b"\n")
        machine.has(A100, foreign)

    pipe = GpuFaultPipe()
    gate = make_gate(replace(declared_gpus("80gb")[0], uuid="GPU-a100"), pipe, close)
    if is_shared:
        with pytest.raises(GpuUnhealthy, match="which is not this worker's"):
            gate(40.0)
        assert kept.returncode == 0
        assert len(pipe.receive(0)) == 1
    else:
        gate(40.0)
        assert kept.poll() is None
        kept.communicate(b"\n")


def test_an_emulated_gpu_takes_every_job() -> None:
    closed: list[Any] = []
    gate = make_gate(None, GpuFaultPipe(), lambda: closed.append(1))
    gate(10_000.0)
    assert closed == []
