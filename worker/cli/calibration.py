"""Measure how much GPU memory training takes, in a trainer process on one GPU."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from routing.classes import GIB
from routing.estimate import PUBLISHED
from tasks.base_models.check import check_base_model
from tasks.calibration import Calibration, read_calibration
from tasks.errors import BaseModelError, ErrorCode, JobError
from tasks.extras import require
from tasks.jobs.calibration_shapes import described, shapes
from tasks.process.file_modes import output_files
from tasks.settings.settings import Settings
from worker.cli.reports.output import FoldedTable, print_json, stdout
from worker.errors import NoGpuToMeasureError
from worker.gpu.inventory import Gpu, choose_gpu, find_gpus
from worker.gpu.nvml import driver_version
from worker.gpu.quarantine import why_unhealthy
from worker.supervision.process import kill_group, spawn
from worker.supervision.trainer_pool import trainer_environment


def calibrate_gpu(
    settings: Settings,
    training_type: str,
    *,
    model: str | None,
    uuid: str | None,
    output: Path,
    json: bool,
) -> None:
    """Measure a GPU and write the fitted constants to a file.

    Args:
        settings: This process's settings.
        training_type: The training type to measure.
        model: The base model; None is the type's default.
        uuid: The GPU; None is the largest.
        output: The file; an existing one keeps the constants that are not measured now.
        json: Print the file's content instead of tables.

    Raises:
        JobError: PyTorch, a GPU or the base model is missing, the file cannot be written, or the
            measurement failed.
    """
    require("torch")
    gpu = _free_gpu(settings, uuid)
    before = _read(output) if output.exists() else None
    # Fail now if the file cannot be written, not after an hour of measuring.
    _write(output.with_name(f".{output.name}.probe"), "").unlink()
    problems = check_base_model(shapes(training_type, model)[0][1])
    if problems:
        raise BaseModelError(problems, "calibrate")
    measured = _measure(settings, gpu, training_type, model)
    merged = measured if before is None else before.with_later(measured)
    text = merged.model_dump_json(indent=2)
    _write(output.with_name(f".{output.name}.new"), text).replace(output)
    if json:
        print_json(merged.model_dump(mode="json"))
        return
    for table in calibration_tables(measured):
        stdout.print(table)
    stdout.print(
        f"written to {output}; set TRAINING_CALIBRATION to it where jobs are submitted",
        soft_wrap=True,
    )


def calibration_tables(measured: Calibration) -> list[Table]:
    """Show the runs and the fitted constants of one session."""
    [session] = measured.sessions
    runs = FoldedTable("run", "measured GiB", "fitted GiB", title=f"{session.gpu}: {session.model}")
    for shape in session.shapes:
        result = shape.message or f"{(shape.measured_bytes or 0) / GIB:.2f}"
        runs.add_row(described(shape.options), result, f"{(shape.fitted_bytes or 0) / GIB:.2f}")
    constants = FoldedTable("constant", "published", "fitted")
    for name, value in measured.constants.items():
        constants.add_row(name, f"{getattr(PUBLISHED, name):,.4g}", f"{value:,.4g}")
    return [runs, constants]


def _free_gpu(settings: Settings, uuid: str | None) -> Gpu:
    """Return the named GPU, or the largest.

    Raises:
        NoGpuToMeasureError: This machine has none, or it is in use.
        InventoryError: This machine does not have the named GPU.
    """
    found = find_gpus(settings.gpus, settings.cuda_visible_devices)
    usable = [gpu for gpu in found if not gpu.emulated and gpu.memory_class is not None]
    if not usable:
        raise NoGpuToMeasureError(
            "this machine has no CUDA GPU to measure; emulated GPUs have no memory"
        )
    gpu = max(usable, key=lambda gpu: gpu.memory_mib)
    if uuid is not None:
        gpu = choose_gpu(uuid, settings.gpus, settings.cuda_visible_devices)
    reason = why_unhealthy(gpu.uuid, 0, set())
    if reason is not None:
        raise NoGpuToMeasureError(f"GPU {gpu.uuid} cannot be measured now: {reason}")
    return gpu


def _read(path: Path) -> Calibration:
    try:
        return read_calibration(path)
    except ValueError as error:
        message = f"{error}; name another --output"
        raise JobError(message, ErrorCode.UNREADABLE_FILE) from error


def _write(path: Path, text: str) -> Path:
    try:
        with output_files():
            path.write_text(text, "utf-8")
    except OSError as error:
        message = f"cannot write {path.parent}: {error.strerror}; name another --output"
        raise JobError(message, ErrorCode.UNREADABLE_FILE) from error
    return path


def _measure(settings: Settings, gpu: Gpu, training_type: str, model: str | None) -> Calibration:
    """Run the trainer's calibration in a process.

    Raises:
        JobError: The process failed; its messages are on standard error.
    """
    scratch = settings.resolved_scratch_dir
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix="calibrate-") as folder:
        result = Path(folder) / "calibration.json"
        options = {"type": training_type, "folder": folder, "output": str(result)}
        options |= {"driver": driver_version()} | ({} if model is None else {"model": model})
        command = [sys.executable, "-P", "-m", "worker.trainer.calibration.calibrate"]
        command += [f"--{name}={value}" for name, value in options.items()]
        process = spawn(command, env=trainer_environment(dict(os.environ), gpu.uuid))
        try:
            code = process.wait()
        finally:
            kill_group(process)
        # A process whose GPU failed may be aborted at its end.
        if code != 0 and not result.exists():
            raise JobError(
                f"the calibration ended with exit code {code}; see its output above",
                ErrorCode.TRAINER_FAILED,
            )
        return read_calibration(result)
