"""A worker whose GPU is unhealthy, on a real fleet over a simulated driver."""

import json
from pathlib import Path
from typing import Any

import pytest

from routing.classes import MIB
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.nvml.machine import A100, T4, Machine
from tests.waiting import wait_until
from worker.miniature.dataset import draw_dataset

FULL = A100.replace(" 81000 ", " 3000 ")
BUSY = "busy GPU-a100 98 71"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    folder = tmp_path / "driver"
    folder.mkdir()
    machine = Machine(folder)
    machine.has(FULL, BUSY, T4)
    return machine


def worker_of(fleet: Fleet, uuid: str = "GPU-a100") -> dict[str, Any]:
    gpus: list[dict[str, Any]] = json.loads(fleet.run("gpus", "--fleet", "--json").out)
    [worker] = [gpu for gpu in gpus if gpu["gpu_uuid"] == uuid]
    return worker


def wait_for_quarantine(fleet: Fleet, because: str) -> None:
    wait_until(
        lambda: because in (worker_of(fleet)["quarantined"] or ""),
        timeout_s=PATIENCE_S,
        description=f"a quarantine for {because!r}",
        detail=fleet.log,
    )


def test_an_unhealthy_gpu_gets_no_job_until_it_recovers(
    machine: Machine, tiny_model: Path, tmp_path: Path
) -> None:
    draw_dataset(tmp_path / "images")
    settings = {"TRAINING_TRAINER_RESTARTS": "0", "TRAINING_MAX_RETRIES": "0"}
    with Fleet(tmp_path / "home", None, **machine.env, **settings) as fleet:
        assert worker_of(fleet)["quarantined"] is None
        unsupported = "it has compute capability 7.5; jobs compute in bfloat16"
        assert unsupported in worker_of(fleet, "GPU-t4")["quarantined"]
        wait_until(
            lambda: worker_of(fleet)["gpu_stats"] is not None,
            timeout_s=PATIENCE_S,
            description="the worker reports its GPU's statistics",
            detail=fleet.log,
        )
        assert worker_of(fleet)["gpu_stats"] == {
            "memory_bytes": 81920 * MIB,
            "used_bytes": (81920 - 3000) * MIB,
            "utilization": 0.98,
            "temperature_c": 71,
        }
        [sent] = fleet.submit(short_job(tiny_model, tmp_path / "images")).documents
        job_id = sent["job_id"]
        wait_for_quarantine(fleet, "3000 MiB are free and the job needs ")

        wait_until(
            lambda: fleet.record(job_id).pending_queue == "gpu.40gb",
            timeout_s=PATIENCE_S,
            description="the job is back in its queue",
            detail=fleet.log,
        )
        assert fleet.record(job_id).retries == 0
        note = fleet.notes(job_id)[-1]
        assert note.startswith("cache waits for another GPU than that of gpu-80gb-0@")

        # Neither a driver error of another card nor an application's error is a reason.
        machine.has(A100, T4, "xid GPU-other -1 79", "xid GPU-a100 -1 31")
        # Without CUDA the trainer fails, which shows that the GPU check has let the job pass.
        wait_until(
            lambda: fleet.record(job_id).status.ended,
            timeout_s=PATIENCE_S,
            description="the job has continued",
            detail=fleet.log,
        )
        assert worker_of(fleet)["quarantined"] is None
        assert "CUDA" in (fleet.record(job_id).error or "")

        machine.has(A100, T4, "xid GPU-other -1 79", "xid GPU-a100 -1 31", "xid GPU-a100 -1 79")
        wait_for_quarantine(fleet, "the driver reported XID 79")
        table = fleet.run("gpus", "--fleet").out
        assert "quarantined" in table
