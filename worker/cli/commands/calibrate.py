"""``training-worker calibrate``."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from routing.classes import GIB
from routing.estimate import PUBLISHED
from tasks.base_models.check import check_base_model
from tasks.calibration import Calibration, read_calibration
from tasks.errors import BaseModelError, ErrorCode, JobError, NotInstalledError
from tasks.jobs.calibration_shapes import described, shapes
from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout
from worker.errors import NoGpuToMeasureError
from worker.gpu.inventory import Gpu, choose_gpu, find_gpus
from worker.gpu.nvml import driver_version
from worker.gpu.quarantine import why_unhealthy
from worker.supervision.process import kill_group, spawn
from worker.supervision.trainer_pool import trainer_environment


def run(
    settings: Settings,
    *,
    training_type: str,
    model: str | None,
    gpu: str | None,
    output: Path,
    json: bool,
) -> None:
    """Measure what training takes of a GPU, and write it to a file."""
    if find_spec("torch") is None:
        raise NotInstalledError("PyTorch", "train")
    card = _card(settings, gpu)
    before = _read(output) if output.exists() else None
    # Told now, and not after an hour.
    _write(output.with_name(f".{output.name}.probe"), "").unlink()
    problems = check_base_model(shapes(training_type, model)[0][1])
    if problems:
        raise BaseModelError(problems, "calibrate")
    measured = _measured(settings, card, training_type, model)
    whole = measured if before is None else before.with_later(measured)
    _write(output.with_name(f".{output.name}.new"), whole.model_dump_json(indent=2)).replace(output)
    if json:
        print_json(whole.model_dump(mode="json"))
        return
    for table in report(measured):
        stdout.print(table)
    stdout.print(
        f"written to {output}; set TRAINING_CALIBRATION to it where jobs are submitted",
        soft_wrap=True,
        markup=False,
    )


def report(measured: Calibration) -> list[Table]:
    """What one session measured, for people."""
    [session] = measured.sessions
    runs = Table("run", "measured GiB", "fitted GiB", title=f"{session.gpu}: {session.model}")
    for shape in session.shapes:
        told = shape.message or f"{(shape.measured_bytes or 0) / GIB:.2f}"
        runs.add_row(described(shape.options), told, f"{(shape.fitted_bytes or 0) / GIB:.2f}")
    constants = Table("constant", "published", "fitted")
    for name, value in measured.constants.items():
        constants.add_row(name, f"{getattr(PUBLISHED, name):,.4g}", f"{value:,.4g}")
    return [runs, constants]


def _card(settings: Settings, uuid: str | None) -> Gpu:
    """The GPU to measure: the one that is named, or the largest.

    Raises:
        NoGpuToMeasureError: There is none, or it is not free.
        InventoryError: The named one is not here.
    """
    found = find_gpus(settings.gpus, settings.cuda_visible_devices)
    usable = [gpu for gpu in found if not gpu.emulated and gpu.memory_class is not None]
    if not usable:
        raise NoGpuToMeasureError(
            "there is no CUDA GPU here to measure; emulated ones have no memory"
        )
    card = max(usable, key=lambda gpu: gpu.memory_mib)
    if uuid is not None:
        card = choose_gpu(uuid, settings.gpus, settings.cuda_visible_devices)
    reason = why_unhealthy(card.uuid, 0, set())
    if reason is not None:
        raise NoGpuToMeasureError(f"GPU {card.uuid} cannot be measured now: {reason}")
    return card


def _read(path: Path) -> Calibration:
    try:
        return read_calibration(path)
    except ValueError as error:
        message = f"{error}; name another --output"
        raise JobError(message, ErrorCode.UNREADABLE_FILE) from error


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        message = f"cannot write {path.parent}: {error.strerror}; name another --output"
        raise JobError(message, ErrorCode.UNREADABLE_FILE) from error
    return path


def _measured(settings: Settings, card: Gpu, training_type: str, model: str | None) -> Calibration:
    """What the trainer makes of it, in a process of its own.

    Raises:
        JobError: It failed; its own words are on standard error.
    """
    scratch = settings.resolved_scratch_dir
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix="calibrate-") as folder:
        result = Path(folder) / "calibration.json"
        options = {"type": training_type, "folder": folder, "output": str(result)}
        options |= {"driver": driver_version()} | ({} if model is None else {"model": model})
        command = [sys.executable, "-P", "-m", "worker.trainer.calibration.calibrate"]
        command += [f"--{name}={value}" for name, value in options.items()]
        process = spawn(command, env=trainer_environment(dict(os.environ), card.uuid))
        try:
            code = process.wait()
        finally:
            kill_group(process)
        if code != 0:
            raise JobError(
                f"the measuring ended with exit code {code}; it said why above",
                ErrorCode.TRAINER_FAILED,
            )
        return read_calibration(result)
