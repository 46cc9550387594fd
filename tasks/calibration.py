"""Calibration files: measurements of ``training-worker calibrate`` on a GPU, and fitted constants.

``TRAINING_CALIBRATION`` names the file; ``tasks/settings/groups.py`` reads it once, when a process
starts.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from routing.estimate import PUBLISHED, MemoryModel
from tasks.strict_model import StrictModel

_NAMES = tuple(field.name for field in fields(MemoryModel))
# Far above any GPU's memory, and far below the overflow of the estimate's floats.
_MAX = 1e15
Constant = Annotated[float, Field(ge=0, le=_MAX, allow_inf_nan=False, strict=True)]


class Measurement(StrictModel):
    """The measurement of one shape; see ``tasks/jobs/calibration_shapes.py``."""

    options: dict[str, JsonValue]
    """The training options that differ from the first shape."""

    measured_bytes: int | None
    """The peak GPU memory, including CUDA's context; null if the shape could not run."""

    fitted_bytes: int | None = None
    """The estimate with the fitted constants."""

    message: str | None = None
    """Why the shape could not run."""


class Session(StrictModel):
    """The measurements of one calibration on one GPU."""

    gpu: str
    driver: str
    torch: str
    training_type: str
    model: str
    shapes: tuple[Measurement, ...]


class Calibration(StrictModel):
    """A calibration file."""

    version: Literal[1]

    constants: dict[str, Constant]
    """The constants that the file replaces; the others keep their published values."""

    sessions: tuple[Session, ...] = ()
    """The source of the constants, for information only."""

    @field_validator("constants")
    @classmethod
    def _known(cls, constants: dict[str, float]) -> dict[str, float]:
        unknown = sorted(constants.keys() - set(_NAMES))
        if unknown:
            known = ", ".join(_NAMES)
            raise ValueError(f"unknown constants: {', '.join(unknown)}; known are {known}")
        return constants

    def with_later(self, later: "Calibration") -> "Calibration":
        """Return this calibration merged with a later one, whose constants win."""
        return Calibration(
            version=1,
            constants={**self.constants, **later.constants},
            sessions=(*self.sessions, *later.sessions),
        )

    def replaced(self) -> MemoryModel:
        """Return the published constants, with those of this calibration replaced."""
        return MemoryModel(**{**vars(PUBLISHED), **self.constants})


def read_calibration(path: Path) -> Calibration:
    """Return the calibration in a file.

    Raises:
        ValueError: The file cannot be read or is invalid; the message lists every problem.
    """
    try:
        return Calibration.model_validate_json(path.expanduser().read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ValueError(f"{path} is not a valid calibration: {problems}") from error
