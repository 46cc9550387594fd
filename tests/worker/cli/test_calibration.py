import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from tasks.calibration import Calibration, Measurement, Session
from tasks.jobs.calibration_shapes import TYPES
from tests.nvml.machine import A100, Machine
from worker.cli.calibration import calibration_tables
from worker.cli.commands.capacity import calibrate

GIB = 2**30
SESSION = Session(
    gpu="A100",
    driver="1.2",
    torch="2.13",
    training_type="FLUX_LORA",
    model="/models/flux",
    shapes=(
        Measurement(options={}, measured_bytes=26 * GIB, fitted_bytes=25 * GIB),
        Measurement(
            options={"quantization": "nf4"},
            measured_bytes=None,
            fitted_bytes=9 * GIB,
            message="bitsandbytes is not installed",
        ),
    ),
)
MEASURED = Calibration(version=1, constants={"flux_overhead_bytes": 2e9}, sessions=(SESSION,))


def run(*options: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "worker", "calibrate", *options],
        env={**kept, "TRAINING_HOME": str(home), "COLUMNS": "200", **env},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


def test_calibrate_offers_the_types_with_shapes() -> None:
    [choices, _] = get_args(signature(calibrate).parameters["training_type"].annotation)
    assert get_args(choices) == TYPES


@pytest.mark.parametrize("inventory", [{}, {"TRAINING_GPUS": "40gb"}])
def test_calibrate_needs_a_real_gpu(tmp_path: Path, inventory: dict[str, str]) -> None:
    ran = run("--json", home=tmp_path, **inventory)
    assert ran.returncode == 18
    assert "this machine has no CUDA GPU to measure" in json.loads(ran.stdout)["error"]["message"]


def test_a_busy_gpu_is_not_measured(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.has(A100, f"process GPU-a100 {os.getpid()} 5000")
    ran = run(home=tmp_path, **machine.env)
    assert ran.returncode == 18, ran
    assert "GPU GPU-a100 cannot be measured now" in ran.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "/nowhere"], 5, "/nowhere is neither a folder"),
        (["--gpu", "GPU-b200"], 7, "this machine has no GPU GPU-b200"),
        (["--output", "nowhere/it.json"], 17, "cannot write nowhere"),
        (["--output", "broken.json"], 17, "broken.json is not a valid calibration"),
        (["--type", "SDXL_FINETUNE"], 2, "SDXL_FINETUNE"),
    ],
)
def test_problems_are_reported_before_measuring(
    tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    machine = Machine(tmp_path)
    machine.has(A100)
    (tmp_path / "broken.json").write_text("{}", "utf-8")
    ran = run(*options, home=tmp_path, **machine.env)
    assert ran.returncode == code, ran
    assert message in ran.stderr
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_a_later_session_replaces_constants() -> None:
    first = Calibration(version=1, constants={"flux_overhead_bytes": 1, "sdxl_overhead_bytes": 3})
    both = first.with_later(MEASURED).with_later(MEASURED)
    assert both.constants == {"flux_overhead_bytes": 2e9, "sdxl_overhead_bytes": 3}
    assert both.sessions == (SESSION, SESSION)


def test_tables_show_every_run_and_constant() -> None:
    console = Console(width=200)
    with console.capture() as shown:
        for table in calibration_tables(MEASURED):
            console.print(table)
    lines = [line.split("│")[1:-1] for line in shown.get().splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines if line]
    assert [row[1:] for row in rows] == [
        ["26.00", "25.00"],
        ["bitsandbytes is not installed", "9.00"],
        ["7.5e+08", "2e+09"],
    ]
