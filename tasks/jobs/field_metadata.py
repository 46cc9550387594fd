"""What an option is, stated once as metadata of its field.

An option's type carries markers in ``Annotated``: which location its text names, what its value
decides beside the run itself, and when it has no effect. Every list of options elsewhere is a walk
over the models by these markers, so that a new option cannot be missing from one:

- ``worker/cli/job_file.py`` resolves relative paths by ``Location``,
- ``console/services/jobs/tenant_policy.py`` refuses what a tenant may not name by ``Location``,
- ``tasks/cache/plan.py`` and ``tasks/base_models/files.py`` identify cache entries by ``Affects``,
- ``worker/trainer/train.py`` identifies a run by ``Affects``,
- ``PipelineConfig.warnings`` reports options without effect by ``ActsIf``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

Marker = TypeVar("Marker")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
"""The id of a repository on the Hub: a name or owner/name."""


class Location(Enum):
    """What the text of an option names. Each option that takes free text has exactly one."""

    NONE = "plain text; names no location"
    DATASET = "a local path or an address of a dataset"
    ARCHIVE = "a local file, an upload or an address of a dataset"
    BASE_MODEL = "a Hub id, a local folder or a local file of a base model"
    FILE = "a local file; of a mapping, its values"
    HUB_DATASET = "a dataset on the Hub, by its id only"
    CACHE_FOLDER = "a local folder that downloads are written to"
    STORE_FOLDER = "a folder in the store that results are written to"
    HUB_REPO = "a repository on the Hub, written to with the tenant's own token"
    BUCKET = "a tenant's bucket, written to with the tenant's own credentials"
    SECRET = "the name of a secret of the tenant"


class Affects(Enum):
    """What an option decides beside the numbers of its run."""

    CACHED_TEXT = "what the text encoders compute of a caption"
    CACHE_ENTRIES = "which cache entries the job reads"
    NO_NUMBER = "no trained number: a run may resume under another value"


@dataclass(frozen=True)
class ActsIf:
    """Marks an option that has no effect in some configs.

    Attributes:
        condition: Returns whether the option acts, given the whole training config.
        otherwise: Why it does not, for the warning; ``{config.NAME}`` is filled in.
    """

    condition: Callable[[Any], bool]
    otherwise: str


PlainText = Annotated[str, Location.NONE]
NonEmptyText = Annotated[str, Field(min_length=1), Location.NONE]


@dataclass(frozen=True)
class OptionValue:
    """One option of a config.

    Attributes:
        path: Its dotted path in the config.
        field: Its declaration.
        value: Its value.
        is_given: Whether the config's author set it.
    """

    path: str
    field: FieldInfo
    value: Any
    is_given: bool


def options_of(
    config: BaseModel, folder: str = "", *, is_given: bool = True
) -> Iterator[OptionValue]:
    """Yield every option of a config that is no config itself, in the order of declaration."""
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), f"{folder}{name}"
        given = is_given and name in config.model_fields_set
        yield OptionValue(path, field, value, given)
        for place, model in _models_inside(value, path):
            yield from options_of(model, f"{place}.", is_given=given)


def marker_of(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """Return a field's marker of one kind; None if it has none.

    Raises:
        TypeError: The field has several, which contradict each other.
    """
    found = set(_markers(field, kind))
    if len(found) > 1:
        raise TypeError(f"one marker is allowed, and there are {len(found)}: {found}")
    return next(iter(found), None)


def affects(field: FieldInfo, effect: Affects) -> bool:
    """Return whether a field carries a marker of what it decides."""
    return effect in _markers(field, Affects)


def takes_free_text(annotation: Any) -> bool:
    """Return whether a type has text that is not of a fixed set.

    A type that is not known here counts as free text, so that it needs a ``Location``, too.
    """
    if get_origin(annotation) is Literal:
        return False
    if arguments := get_args(annotation):
        inner = arguments[:1] if get_origin(annotation) is Annotated else arguments
        return any(takes_free_text(each) for each in inner if each is not Ellipsis)
    if not isinstance(annotation, type):
        return True
    return not issubclass(annotation, int | float | NoneType | Enum | BaseModel)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the config models in a type, such as the branches of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from models_in(each)


def fields_with(config: BaseModel, effect: Affects) -> dict[str, Any]:
    """Return the fields with a marker, at any depth, as pydantic's ``include`` and ``exclude``."""
    tree: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if affects(field, effect):
            tree[name] = True
        elif isinstance(value, BaseModel) and (inner := fields_with(value, effect)):
            tree[name] = inner
    return tree


def public_options(config: BaseModel) -> dict[str, Any]:
    """Return a config's options as JSON, without those that name places of the fleet."""
    given = config.model_dump(mode="json")
    options: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value, location = getattr(config, name), marker_of(field, Location)
        if isinstance(value, BaseModel):
            options[name] = public_options(value)
        elif location is Location.BASE_MODEL and not HUB_ID.fullmatch(str(value)):
            options[name] = None
        elif location in (None, Location.NONE, Location.HUB_DATASET, Location.BASE_MODEL):
            options[name] = given[name]
    return options


def inert_options(config: BaseModel) -> list[str]:
    """Return a sentence for each option that is given and has no effect in its config."""
    return [
        f"{option.path} has no effect: {acts.otherwise.format(config=config)}"
        for option in options_of(config)
        # Null, false, zero and an empty list ask for no effect.
        if option.is_given
        and option.value
        and (acts := marker_of(option.field, ActsIf)) is not None
        and not acts.condition(config)
    ]


def _models_inside(value: Any, path: str) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _models_inside(each, f"{path}.{key}")
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _models_inside(each, f"{path}.{number}")


def _markers(field: FieldInfo, kind: type[Marker]) -> Iterator[Marker]:
    """Yield a field's markers: those of the whole field, then those of its type's parts."""
    yield from (each for each in field.metadata if isinstance(each, kind))
    yield from _markers_within(field.annotation, kind)


def _markers_within(annotation: Any, kind: type[Marker]) -> Iterator[Marker]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return
    if get_origin(annotation) is Annotated:
        yield from (each for each in annotation.__metadata__ if isinstance(each, kind))
    for each in get_args(annotation):
        yield from _markers_within(each, kind)
