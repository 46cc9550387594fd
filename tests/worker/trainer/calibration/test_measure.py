import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.calibration import read_calibration
from tasks.jobs.calibration_shapes import Options
from tasks.stages.trainer_protocol import TrainerExit
from tests.worker.trainer.runs import (
    CACHED,
    Images,
    config_of,
    run_train,
    sdxl_config_of,
)
from worker.trainer.calibration.calibrate import calibrate
from worker.trainer.calibration.measure import Bench, measure
from worker.trainer.compute.memory import HostMeter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of memory")
MIB = 2**20


def command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "worker.trainer.calibration.calibrate", *options]


def test_host_meter_measures_and_resets_its_peak() -> None:
    meter = HostMeter()
    meter.reset()
    before = meter.peak_bytes()
    with mmap.mmap(-1, 256 * MIB) as held:  # a bytearray may get memory that is resident already
        held[::4096] = b"x" * len(held[::4096])
    assert meter.peak_bytes() > before + 200 * MIB
    meter.reset()
    assert meter.peak_bytes() < before + 100 * MIB


def test_run_reports_its_meters_peak(tiny_flux: Path, data: Images) -> None:
    config = config_of(tiny_flux, max_train_steps=1)
    assert run_train(data, config).done.peak_memory_bytes is None


def test_shapes_share_encoded_entries(tiny_flux: Path, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        CACHED,
        {**CACHED, "lora_rank_dim": 8},
        {**CACHED, "cache_text_encoder_outputs": False},
    ]
    bench = Bench(tmp_path, "cpu")
    wanted = [(it, config_of(tiny_flux, max_train_steps=2, **it)) for it in options]
    measured = list(measure(bench, wanted))
    assert [it.options for it in measured] == options
    # On the CPU this whole process is measured, PyTorch included.
    assert all((it.measured_bytes or 0) > 100 * MIB for it in measured)
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in stored if "safetensors" in path.name and "lora" in path.name]
    packs = {path.name for path in stored if "cache" in path.parts}
    assert len(packs) == 2  # of captions and of latents


def test_a_full_memory_costs_one_shape_and_a_failed_gpu_the_rest(
    tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[int | Exception] = [
        RuntimeError("CUDA error: out of memory"),
        5,
        RuntimeError("CUDA error: misaligned address"),
    ]

    def peak_bytes(*_: object) -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(Bench, "peak_bytes", peak_bytes)
    options: Options = {}
    measured = list(measure(Bench(tmp_path, "cpu"), [(options, config_of(tiny_flux))] * 4))
    assert [it.measured_bytes for it in measured] == [None, 5, None, None]
    assert [it.message for it in measured] == [
        "the GPU's memory is full",
        None,
        "the GPU failed: CUDA error: misaligned address",
        "not measured, since the GPU has failed",
    ]


def test_larger_images_take_more_memory(tiny_sdxl: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, "cpu")
    small, large = (
        bench.peak_bytes(
            sdxl_config_of(
                "SDXL_LORA",
                tiny_sdxl,
                loader={"resolution": resolution},
                max_train_steps=2,
                train_batch_size=1,
                cache_vae_outputs=True,
            )
        )
        for resolution in (64, 768)
    )
    assert large > small + 20 * MIB


def test_calibration_names_its_gpu_and_shapes(tiny_sdxl: Path, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"gradient_checkpointing": True}]
    wanted = [
        (it, sdxl_config_of("SDXL_LORA", tiny_sdxl, max_train_steps=2, **it)) for it in options
    ]
    made = calibrate(wanted, tmp_path, "cpu", "1.2")
    [session] = made.sessions
    assert (session.gpu, session.driver, session.model) == ("cpu", "1.2", str(tiny_sdxl))
    assert [it.options for it in session.shapes] == options
    assert all(it.measured_bytes and it.fitted_bytes for it in session.shapes)
    file = tmp_path / "calibration.json"
    file.write_text(made.model_dump_json(), "utf-8")
    assert read_calibration(file) == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=cuda"], "PyTorch finds no CUDA device"),
        (["--device=cpu", "--model=/nowhere"], "nowhere"),
    ],
)
def test_calibrate_process_reports_why_it_fails(
    tmp_path: Path, options: list[str], message: str
) -> None:
    files = [f"--folder={tmp_path}", f"--output={tmp_path / 'calibration.json'}"]
    ran = subprocess.run(
        command("--type=FLUX_LORA", *files, *options),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == TrainerExit.REFUSED, ran.stderr
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
