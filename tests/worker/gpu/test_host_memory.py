import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from routing.classes import MemoryClass
from tests.nvml.machine import A100, T4, Machine
from worker.gpu.host_memory import host_memory_bytes, memory_shortage

GIB = 2**30


@pytest.mark.parametrize(
    ("memory_class", "total_bytes", "short_of"),
    [
        # Linux's total on a machine that is sold with 64 GB.
        (MemoryClass.GB80, int(62.7 * GIB), ()),
        (MemoryClass.GB80, int(31.2 * GIB), ("FLUX_LORA (64 GB)",)),
        (MemoryClass.GB24, int(31.2 * GIB), ()),
        (MemoryClass.GB24, int(15.5 * GIB), ("SDXL_FINETUNE (32 GB)",)),
        (MemoryClass.GB8, int(15.5 * GIB), ()),
        (MemoryClass.GB8, 8 * GIB, ("SDXL_LORA (16 GB)", "SDXL_TEXTUAL_INVERSION (12 GB)")),
    ],
)
def test_types_that_need_more_memory_are_named(
    memory_class: MemoryClass, total_bytes: int, short_of: tuple[str, ...]
) -> None:
    shortage = memory_shortage(memory_class, total_bytes)
    assert (shortage is None) == (not short_of)
    assert all(name in (shortage or "") for name in short_of)
    assert (shortage or "").count("(") == len(short_of)


def test_host_memory_is_at_most_what_the_kernel_reports() -> None:
    assert 0 < host_memory_bytes() <= psutil.virtual_memory().total


def test_doctor_compares_this_machine_with_its_gpus(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.has(A100, T4)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "doctor"],
        env={
            **env,
            **machine.env,
            "TRAINING_HOME": str(tmp_path / "home"),
            "COLUMNS": "300",
            "NVIDIA_TF32_OVERRIDE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    [line] = [line for line in ran.stdout.splitlines() if "system memory" in line]
    short = memory_shortage(MemoryClass.GB80, host_memory_bytes())
    assert ("warning" in line) == (short is not None)
    errors = [line for line in ran.stdout.splitlines() if "error" in line]
    assert any(
        "Tesla-T4: it has compute capability 7.5; jobs compute in" in line for line in errors
    )
    assert not any("A100" in line for line in errors)
    assert "NVIDIA_TF32_OVERRIDE" in ran.stdout
