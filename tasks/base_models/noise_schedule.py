"""What an SDXL run's UNet predicts, and over which noise levels: decided here for all stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.base_models.files import base_model_folder, json_object, single_file
from tasks.base_models.safetensors_header import Header, read_header
from tasks.errors import BaseModelFilesError, Problem
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig

# The names that ComfyUI reads, of empty tensors.
VELOCITY_KEY = "v_pred"
ZERO_SNR_KEY = "ztsnr"
_METADATA_KEY = "modelspec.prediction_type"
_NAMES = {"v": "v_prediction", "epsilon": "epsilon"}


@dataclass(frozen=True)
class NoiseSchedule:
    """What the UNet predicts, and over which noise levels.

    Attributes:
        prediction_type: The noise, or the velocity.
        zero_terminal_snr: Whether the last level is pure noise (Lin et al., 2023). Only a velocity
            can be predicted there.
    """

    prediction_type: Literal["epsilon", "v_prediction"]
    zero_terminal_snr: bool

    @property
    def scheduler_values(self) -> dict[str, Any]:
        """The values that replace those of the base model's ``scheduler_config.json``."""
        values: dict[str, Any] = {
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.zero_terminal_snr,
        }
        # Other spacings never sample at the last level.
        return values | ({"timestep_spacing": "trailing"} if self.zero_terminal_snr else {})


def noise_schedule(config: SdxlConfig) -> NoiseSchedule:
    """Return a run's noise schedule: the base model's, unless ``prediction_type`` replaces it.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    file = single_file(config)
    prediction, zero_snr = (None, False) if file is None else _of_file(read_header(file))
    if prediction is None:
        prediction, described = _of_folder(base_model_folder(config, ("scheduler",)))
        zero_snr = zero_snr or described
    run: Any = config.prediction_type or prediction
    if run not in _NAMES.values():
        problem = f"its scheduler predicts {run!r}; set prediction_type to what the UNet predicts"
        raise BaseModelFilesError(config.model, problem)
    return NoiseSchedule(run, zero_snr and run == "v_prediction")


def noise_notes(config: PipelineConfig) -> list[Problem]:
    """Return what a job's author should know of the noise schedule of a local base model."""
    if not isinstance(config, SdxlConfig):
        return []
    is_file = config.model.endswith(".safetensors")
    try:
        path = Path(config.model)
        if not is_file and not path.is_dir():
            return []
        prediction, zero_snr = _of_file(read_header(path)) if is_file else _of_folder(path)
    except (OSError, BaseModelFilesError):
        return []  # the checks report it
    if config.prediction_type not in (None, prediction) and prediction is not None:
        message = (
            f"{config.prediction_type} replaces {prediction}, which is what the UNet of "
            f"{config.model} predicts by its own files; leave prediction_type out unless they err"
        )
        return [Problem("training.prediction_type", message)]
    if zero_snr and (config.prediction_type or prediction) != "v_prediction":
        message = (
            f"the files of {config.model} say that its noise levels end in pure noise (zero "
            "terminal SNR), where only velocities can be predicted; the run uses SDXL's own levels"
        )
        return [Problem("training.model", message)]
    if not is_file or prediction != "v_prediction":
        return []
    ends = ", over noise levels that end in pure noise (zero terminal SNR)" if zero_snr else ""
    message = f"the file {config.model} says that its UNet predicts velocities; the run does{ends}"
    return [Problem("training.model", message)]


def _of_file(header: Header) -> tuple[str | None, bool]:
    """Return what a file says: the prediction type, or None; whether its SNR ends at zero."""
    named = _NAMES.get(header.metadata.get(_METADATA_KEY, ""))
    prediction = "v_prediction" if VELOCITY_KEY in header.tensors else named
    return prediction, ZERO_SNR_KEY in header.tensors


def _of_folder(folder: Path) -> tuple[str, bool]:
    values = json_object(folder, "scheduler/scheduler_config.json")
    kind = str(values.get("_class_name"))
    if kind.startswith(("EDM", "FlowMatch")):
        problem = f"its scheduler is a {kind}; SDXL is trained on the noise levels of DDPM"
        raise BaseModelFilesError(str(folder), problem)
    prediction = str(values.get("prediction_type", "epsilon"))
    return prediction, values.get("rescale_betas_zero_snr") is True
