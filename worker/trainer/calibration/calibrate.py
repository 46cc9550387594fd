"""The process that measures a GPU: ``python -P -m worker.trainer.calibration.calibrate``.

It trains each shape and writes a calibration: the peaks, and the constants that fit them.
``training-worker calibrate`` starts it; standard error is for people.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from tasks.calibration import Calibration, Measurement, Session
from tasks.errors import JobError
from tasks.jobs.calibration_shapes import TYPES, Options, shapes
from tasks.jobs.job import TrainingConfig
from tasks.stages.trainer_protocol import TrainerExit
from worker.trainer.calibration.fit import fit
from worker.trainer.environment import set_up
from worker.trainer.errors import RefusedError

logger = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]
Shapes = Iterable[tuple[Options, TrainingConfig]]


def main() -> int:
    """Measure, fit and write.

    Returns:
        A ``TrainerExit`` code.
    """
    parser = argparse.ArgumentParser(prog="python -P -m worker.trainer.calibration.calibrate")
    parser.add_argument("--type", required=True, choices=TYPES)
    parser.add_argument("--model", help="unset: the type's default")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--driver", default="", help="the driver's version, for the file")
    parser.add_argument("--folder", type=Path, required=True, help="for intermediate files")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    set_up()
    logging.getLogger("worker.trainer").setLevel(logging.INFO)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        logger.error("PyTorch finds no CUDA device; install a build of PyTorch for CUDA")
        return TrainerExit.REFUSED
    try:
        calibration = calibrate(
            shapes(arguments.type, arguments.model),
            arguments.folder,
            arguments.device,
            arguments.driver,
        )
    except (RefusedError, JobError) as error:
        logger.error("%s", error)
        return TrainerExit.REFUSED
    arguments.output.write_text(calibration.model_dump_json(indent=2), "utf-8")
    return TrainerExit.DONE


def calibrate(wanted: Shapes, folder: Path, device: Device, driver: str) -> Calibration:
    """Measure the memory of shapes on a device, and fit the constants.

    Args:
        wanted: The shapes, all of one type and model.
        folder: A folder for intermediate files.
        device: The device to train on.
        driver: The version of its driver.

    Raises:
        RefusedError: The trainer cannot train any of the shapes.
        JobError: The base model or the folder cannot be used.
    """
    # Imported after set_up: it imports the libraries.
    from worker.trainer.calibration.measure import Bench, measure

    configs = [config for _, config in wanted]
    # A GPU that fails meanwhile no longer reports it.
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    measured = list(measure(Bench(folder, device), wanted))
    constants = fitted(configs, measured)
    replaced = Calibration(version=1, constants=constants).replaced()
    session = Session(
        gpu=gpu,
        driver=driver,
        torch=torch.__version__,
        training_type=configs[0].type,
        model=configs[0].model,
        shapes=tuple(
            it.model_copy(update={"fitted_bytes": config.estimate(replaced).needed_bytes})
            for config, it in zip(configs, measured, strict=True)
        ),
    )
    return Calibration(version=1, constants=constants, sessions=(session,))


def fitted(configs: Iterable[TrainingConfig], measured: Iterable[Measurement]) -> dict[str, float]:
    """Return the constants that fit the runs that were measured."""
    rows = zip(configs, measured, strict=True)
    ran = [(config, it.measured_bytes) for config, it in rows if it.measured_bytes is not None]
    return fit([config for config, _ in ran], [peak for _, peak in ran])


if __name__ == "__main__":
    sys.exit(main())
