"""The GPU check, tried with tiny models on the CPU."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check, gpu_parts
from benchmarks.gpu_carry import missing, requirements
from benchmarks.memory_trace.traces import recorded

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, transformers and the profiler


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> gpu_parts.Check:
    check = gpu_parts.Check(tmp_path_factory.mktemp("check"), "cpu", "tiny")
    assert [row["model"] for row in gpu_parts.models(check)] == ["FLUX_LORA", "SDXL_LORA"]
    return check


def test_attention_takes_a_kernel_in_each_mode(check: gpu_parts.Check) -> None:
    rows = list(gpu_parts.ceilings(check))
    assert len([row for row in rows if "attention" in str(row["what"]) and row["ok"]]) == 3


def test_jobs_of_each_family_are_measured(check: gpu_parts.Check) -> None:
    bench = check.bench()
    for job in ("FLUX_LORA 1024, 20 blocks", "SDXL_LORA 768, batch 4, no checkpointing"):
        row = gpu_parts.measured(check, bench, job)
        assert row["estimate, GiB"]
        assert row["peak, GiB"]
        assert isinstance(row["final loss"], float)


def test_runs_repeat_and_resume_exactly(check: gpu_parts.Check) -> None:
    strict, loose = gpu_parts.repeat(check)
    assert strict["ok"]
    assert "ok" not in loose  # nothing is promised without determinism


def test_profile_names_the_longest_kernels(check: gpu_parts.Check) -> None:
    row = gpu_parts.profiled(check, check.bench(), "FLUX_LORA 512")
    assert "aten::" in str(row["longest"])


@pytest.mark.parametrize("fails", ["raises", "hangs"])
def test_a_part_that_fails_costs_only_itself(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: dict[str, Any] = {
        "ceilings": "print('{\"what\": 1}', flush=True); " + _FAILS[fails],
        "models": "print('{\"model\": 2}', flush=True)",
    }
    monkeypatch.setattr(gpu_check, "PARTS", {"ceilings": 1, "models": 30})
    monkeypatch.setattr(
        gpu_check, "command_of", lambda name: [sys.executable, "-c", commands[name]]
    )
    monkeypatch.setattr(sys, "argv", ["gpu_check", str(tmp_path), "--report", f"{tmp_path}/out.md"])
    began = time.monotonic()
    assert gpu_check.main() == 1
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["part"], row.get("ok")) for row in rows] == [
        ("ceilings", None),
        ("ceilings", False),
        ("models", None),
        ("models", True),
    ]
    assert ("was killed" if fails == "hangs" else "failed (1)") in rows[1]["ended"]
    assert "| 2 |" in (tmp_path / "out.md").read_text("utf-8")
    assert time.monotonic() - began < 60
    assert capsys.readouterr().out


_FAILS = {"raises": "raise SystemExit(1)", "hangs": "import time; time.sleep(300)"}


def test_wheels_to_carry_are_what_the_machine_lacks() -> None:
    theirs = {"numpy": "2.5.2", "safetensors": "0.1.0", "transformers": "4.0", "torch": "2.11.0"}
    found = dict(line.split("==") for line in missing(requirements(), theirs, "3.12"))
    assert {"diffusers", "pydantic-core", "kombu", "safetensors"} <= found.keys()
    assert not {"numpy", "torch", "transformers", "mypy"} & found.keys()


def test_every_job_of_the_check_is_traced() -> None:
    jobs = {*gpu_parts.PEAKS, *gpu_parts.QUANTIZED, *gpu_parts.OPTIONS}
    assert jobs <= recorded().keys()
