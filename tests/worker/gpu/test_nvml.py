import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nvml.machine import A100, RTX_3090, SPLIT_A100, T4, Machine
from worker.errors import InventoryError
from worker.gpu.inventory import choose_gpu

Gpus = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("driver"))


def run(machine: Machine, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINING_", "CUDA_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "worker", *command],
        env={**clean, **machine.env, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def gpus(machine: Machine) -> Gpus:
    def query(*lines: str, **env: str) -> list[dict[str, Any]]:
        machine.has(*lines)
        answer = run(machine, "gpus", "--json", **env)
        assert answer.returncode == 0, answer.stderr
        listed: list[dict[str, Any]] = json.loads(answer.stdout)
        return listed

    return query


def test_a_card_reports_class_capability_and_processes(gpus: Gpus) -> None:
    a100, t4, rtx = gpus(A100, T4, RTX_3090, "process GPU-t4 4711 1000", "process GPU-t4 4712 20")
    assert (a100["uuid"], a100["name"], a100["memory_class"]) == ("GPU-a100", "A100-80GB", "80gb")
    assert a100["device"]["free_mib"] == 81000
    assert a100["device"]["ecc"] is True
    assert rtx["device"]["ecc"] is None
    assert (t4["memory_class"], rtx["memory_class"]) == ("16gb", "24gb")
    assert t4["device"]["compute_capability"] == [7, 5]
    assert t4["device"]["processes"] == {"4711": 1000, "4712": 20}


def test_a_split_card_is_its_instances(gpus: Gpus) -> None:
    t4, one, two = gpus(T4, *SPLIT_A100)
    assert t4["uuid"] == "GPU-t4"
    assert (one["uuid"], one["name"], one["memory_class"]) == ("MIG-one", "A100-40GB", "16gb")
    assert (two["uuid"], two["memory_class"], two["device"]["mig"]) == ("MIG-two", "8gb", True)
    assert two["device"]["compute_capability"] == [8, 0]


def read_stats(machine: Machine, uuid: str) -> "subprocess.CompletedProcess[str]":
    program = (
        f"from worker.gpu.nvml import read_stats; print(read_stats({uuid!r}).model_dump_json())"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **machine.env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_unsupported_statistics_are_absent(machine: Machine) -> None:
    machine.has(A100, T4, "busy GPU-a100 98 71", "lost GPU-gone")
    assert json.loads(read_stats(machine, "GPU-a100").stdout) == {
        "memory_bytes": 81920 * 2**20,
        "used_bytes": 920 * 2**20,
        "utilization": 0.98,
        "temperature_c": 71,
    }
    assert json.loads(read_stats(machine, "GPU-t4").stdout)["utilization"] is None
    assert "DriverError" in read_stats(machine, "GPU-gone").stderr


def test_a_lost_card_does_not_hide_the_others(gpus: Gpus) -> None:
    a100, t4 = gpus(A100, T4, "lost GPU-a100")
    assert a100["device"]["problem"] == "GPU is lost"
    assert a100["memory_class"] is None
    assert t4["memory_class"] == "16gb"


def test_a_card_below_all_classes_has_no_class(gpus: Gpus) -> None:
    [card] = gpus("card GPU-small GT-1030 2048 2000 6 1 -1 0")
    assert card["memory_class"] is None


def test_without_a_driver_no_gpu_is_listed(gpus: Gpus) -> None:
    assert gpus() == []
    assert gpus("broken 9") == []


def test_a_driver_that_does_not_answer_is_an_error(machine: Machine) -> None:
    machine.has(A100, "broken 18")
    answer = run(machine, "gpus", "--json")
    assert answer.returncode == 7
    assert (
        "the NVIDIA driver does not answer: RM has detected an NVML/RM version mismatch"
        in answer.stdout
    )


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ["GPU-t4"]),
        ("GPU-3090,0", ["GPU-3090", "GPU-a100"]),
        ("GPU-t, 1", ["GPU-t4"]),
        ("2,-1,0", ["GPU-3090"]),
        ("", []),
    ],
)
def test_only_visible_devices_are_used(gpus: Gpus, visible: str, expected: list[str]) -> None:
    visible_gpus = gpus(A100, T4, RTX_3090, CUDA_VISIBLE_DEVICES=visible)
    assert [gpu["uuid"] for gpu in visible_gpus] == expected


def test_an_absent_visible_device_is_named(machine: Machine) -> None:
    machine.has(A100)
    answer = run(machine, "gpus", CUDA_VISIBLE_DEVICES="0,7")
    assert answer.returncode == 7
    assert "CUDA_VISIBLE_DEVICES: this machine has no GPU 7" in answer.stderr


def test_gpus_are_listed_in_a_table(machine: Machine) -> None:
    machine.has(A100, T4, "card GPU-small GT-1030 2048 2000 6 1 -1 0")
    table = run(machine, "gpus", COLUMNS="200").stdout
    rows = {line.split("│")[1].strip(): line for line in table.splitlines() if "GPU-" in line}
    assert "gpu.80gb, gpu.40gb" in rows["GPU-a100"]
    assert [cell.strip() for cell in rows["GPU-t4"].split("│")][3:8] == [
        "15.0 GiB",
        "14.7 GiB",
        "no",
        "on",
        "16gb",
    ]
    assert "too small" in rows["GPU-small"]


def test_a_worker_needs_an_existing_gpu(machine: Machine, tmp_path: Path) -> None:
    machine.has(A100, *SPLIT_A100, "lost GPU-a100")
    for uuid, why in (
        ("GPU-gone", "this machine has no GPU GPU-gone; it has: "),
        ("GPU-split", "this machine has no GPU GPU-split"),  # a split card runs nothing itself
    ):
        answer = run(machine, "worker", "--gpu", uuid, TRAINING_BROKER_URL="redis://localhost:1/0")
        assert answer.returncode == 7
        assert why in answer.stderr


def test_a_declared_inventory_needs_no_driver() -> None:
    with pytest.raises(InventoryError, match="has no GPU GPU-1"):
        choose_gpu("GPU-1", "24gb")
