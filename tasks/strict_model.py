"""The strict base of all config models, and the constrained numbers they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class StrictModel(BaseModel):
    """Frozen, refuses unknown fields, and checks defaults as it checks what users give.

    Checks across fields are field validators on the later field (``info.data`` holds the earlier
    ones), so that pydantic reports every fault of a document at once.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


# What torch and every file format count with; larger ones overflow the memory estimate's floats.
_MAX = 2**63 - 1
PositiveInt = Annotated[int, Field(gt=0, le=_MAX, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
