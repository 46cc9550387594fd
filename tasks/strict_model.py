"""The strict base of all models, and the constrained numbers they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

EXACTLY_ONE = "exactly_one"
"""The type of the error that ``exactly_one`` makes."""


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields and validates defaults like given values.

    Checks across fields are field validators on the later field (``info.data`` has the earlier
    ones), so that pydantic reports all problems of a document together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


# The range of torch and of the file formats; larger numbers overflow the memory estimate's floats.
_MAX = 2**63 - 1
PositiveInt = Annotated[int, Field(gt=0, le=_MAX, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def exactly_one(*names: str) -> PydanticCustomError:
    """Return the error of options of which none or more than one is set."""
    *first, last = names
    options = f"{', '.join(first)} and {last}"
    return PydanticCustomError(EXACTLY_ONE, "set exactly one of {options}", {"options": options})
