import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from routing.classes import MemoryClass
from tests.nvml.machine import A100, T4, Machine
from worker.gpu.host_memory import host_memory_bytes, too_little_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("memory_class", "total_bytes", "wanting"),
    [
        # What Linux has left of a machine that is sold with 64 GB.
        (MemoryClass.GB80, int(62.7 * GIB), ()),
        (MemoryClass.GB80, int(31.2 * GIB), ("FLUX_LORA (64 GB)",)),
        (MemoryClass.GB24, int(31.2 * GIB), ()),
        (MemoryClass.GB24, int(15.5 * GIB), ("SDXL_FINETUNE (32 GB)",)),
        (MemoryClass.GB8, int(15.5 * GIB), ()),
        (MemoryClass.GB8, 8 * GIB, ("SDXL_LORA (16 GB)", "SDXL_TEXTUAL_INVERSION (12 GB)")),
    ],
)
def test_types_that_need_more_than_there_is_are_named(
    memory_class: MemoryClass, total_bytes: int, wanting: tuple[str, ...]
) -> None:
    told = too_little_memory(memory_class, total_bytes)
    assert (told is None) == (not wanting)
    assert all(name in (told or "") for name in wanting)
    assert (told or "").count("(") == len(wanting)


def test_this_machine_has_memory_and_no_more_than_the_kernel_tells() -> None:
    assert 0 < host_memory_bytes() <= psutil.virtual_memory().total


def test_the_doctor_compares_this_machines_memory_with_its_cards(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.has(A100, T4)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "doctor"],
        env={**env, **machine.env, "TRAINING_HOME": str(tmp_path / "home"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    [line] = [line for line in ran.stdout.splitlines() if "system memory" in line]
    short = too_little_memory(MemoryClass.GB80, host_memory_bytes())
    assert ("warning" in line) == (short is not None)
