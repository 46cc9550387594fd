"""A calibration: what ``training-worker calibrate`` measured on a GPU, and the constants it fits.

``TRAINING_CALIBRATION`` names its file; ``tasks/settings/groups.py`` reads it once, when a process
starts.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from routing.estimate import PUBLISHED, MemoryModel
from tasks.strict_model import StrictModel

_NAMES = tuple(field.name for field in fields(MemoryModel))
# Far above any card, and far below where the estimate's floats end.
_MAX = 1e15
Constant = Annotated[float, Field(ge=0, le=_MAX, allow_inf_nan=False, strict=True)]


class Measurement(StrictModel):
    """One shape's run."""

    options: dict[str, JsonValue]
    """What sets it apart from the other shapes: training options."""

    measured_bytes: int | None
    """The peak of its GPU memory, CUDA's context with it; null where it could not run."""

    fitted_bytes: int | None = None
    """The estimate with the fitted constants."""

    message: str | None = None
    """Why it could not run."""


class Session(StrictModel):
    """What was measured at a time, on a card."""

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
    """Those that it replaces; the others keep their published values."""

    sessions: tuple[Session, ...] = ()
    """Where they come from; nothing is computed from it."""

    @field_validator("constants")
    @classmethod
    def _known(cls, constants: dict[str, float]) -> dict[str, float]:
        unknown = sorted(constants.keys() - set(_NAMES))
        if unknown:
            known = ", ".join(_NAMES)
            raise ValueError(f"no such constant: {', '.join(unknown)}; there are {known}")
        return constants

    def with_later(self, later: "Calibration") -> "Calibration":
        """This with another one, whose constants win."""
        return Calibration(
            version=1,
            constants={**self.constants, **later.constants},
            sessions=(*self.sessions, *later.sessions),
        )

    def replaced(self) -> MemoryModel:
        """The constants, with those that it names replaced."""
        return MemoryModel(**{**vars(PUBLISHED), **self.constants})


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises:
        ValueError: It cannot be read, or is none; with every fault of it.
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
        raise ValueError(f"{path} is no calibration: {problems}") from error
