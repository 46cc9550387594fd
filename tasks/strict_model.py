"""The strict base of all models, and the constrained numbers they share."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

EXACTLY_ONE = "exactly_one"
"""The type of the error that ``exactly_one`` makes."""

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
SHA256 = r"^[0-9a-f]{64}$"
WORD = r"^[^\s,]+$"
PATTERNS = {
    SAFE_NAME: "must be letters, digits, '-' and '_', with single dots between them, and begin "
    "with a letter or digit",
    SHA256: "must be 64 digits, each 0 to 9 or a to f",
    WORD: "must be one word, without spaces and commas",
}
"""What each pattern requires, in words."""


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields and validates defaults like given values.

    Checks across fields are field validators on the later field (``info.data`` has the earlier
    ones), so that pydantic reports all problems of a document together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


def _no_boolean(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "a number is needed")
    return value


def _without_home(path: str) -> str:
    """Return a path or an address.

    Raises:
        ValueError: It depends on the user who reads it.
    """
    if path.startswith("~"):
        raise ValueError(
            "begins with '~', which only a job file on the command line may; write the whole path"
        )
    return path


# The range of torch and of the file formats; larger numbers overflow the memory estimate's floats.
_MAX = 2**63 - 1
NO_BOOLEAN = BeforeValidator(_no_boolean)
NO_HOME = AfterValidator(_without_home)
PositiveInt = Annotated[int, Field(gt=0, le=_MAX, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MAX, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NO_BOOLEAN]


def exactly_one(*names: str) -> PydanticCustomError:
    """Return the error of options of which none or more than one is set."""
    *first, last = names
    options = f"{', '.join(first)} and {last}"
    return PydanticCustomError(EXACTLY_ONE, "set exactly one of {options}", {"options": options})
