"""What is wrong with a job's document, in plain words and by the paths that its author wrote."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tasks.errors import Problem, ProblemCode
from tasks.escaping import quoted, shortened
from tasks.jobs.field_metadata import models_in
from tasks.strict_model import EXACTLY_ONE, PATTERNS

Model = TypeVar("Model", bound=BaseModel)
Details = dict[str, Any]
"""An error of pydantic."""

# A job's training has a data loader, which has a dataset.
_MAX_NESTED_TYPES = 4
# The branches of unions, which appear in pydantic's paths and not in the author's document.
_BRANCH = re.compile(
    r"^([A-Z][A-Z_]+|AdamW|Prodigy|Adafactor|(constrained-)?int|bool|tuple\[.*|\[key\])$"
)
_NO_BRANCH = ("union_tag_invalid", "union_tag_not_found")
# Errors of values that were not given.
_MISSING = ("missing", "union_tag_not_found", EXACTLY_ONE)
_CODES: dict[str, ProblemCode] = {
    "extra_forbidden": "unknown_option",
    **dict.fromkeys(("literal_error", "enum", "union_tag_invalid"), "unknown_choice"),
    **dict.fromkeys(
        (
            "finite_number",
            "greater_than",
            "greater_than_equal",
            "less_than",
            "less_than_equal",
            "string_too_short",
            "string_too_long",
            "too_long",
        ),
        "out_of_range",
    ),
}
_OWN_MESSAGES = ("value_error", "json_invalid", EXACTLY_ONE)
# pydantic's errors in plain words; its own are written for programmers.
_MESSAGES = {
    "missing": "is missing",
    "union_tag_not_found": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping (name: value)",
    "model_type": "must be a mapping (name: value)",
    "model_attributes_type": "must be a mapping (name: value)",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have {max_length} values, not {actual_length}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
}
# How people write true and false that is not YAML 1.2's.
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y", "1"), "true"),
    **dict.fromkeys(("false", "no", "off", "n", "0"), "false"),
}
# Finding similar names takes milliseconds.
_MAX_SUGGESTIONS = 20


def validate(document: dict[str, Any], root: type[Model]) -> tuple[Model | None, list[Problem]]:
    """Return the model of a document, or every problem by its path in the document.

    A part whose ``type`` is missing or unknown is checked as what it is likely meant to be.
    """
    problems: list[Problem] = []
    for _ in range(_MAX_NESTED_TYPES):
        try:
            # As JSON text: pydantic accepts only what a message can carry, in its types.
            model = root.model_validate_json(json.dumps(document))
        except ValidationError as error:
            errors: list[Details] = [dict(details) for details in error.errors(include_url=False)]
        else:
            return (None if problems else model), problems
        untyped = [details for details in errors if details["type"] in _NO_BRANCH]
        if not untyped:
            break
        problems += _problems_of(untyped, root)
        for details in untyped:
            document = _with_likely_type(document, details, root)
    return None, problems + _problems_of(errors, root)


def _problems_of(errors: Sequence[Details], root: type[BaseModel]) -> list[Problem]:
    by_path: dict[tuple[str, ...], list[Details]] = {}
    for details in errors:
        by_path.setdefault(_path(details), []).append(details)
    folders = {path[:length] for path in by_path for length in range(1, len(path))}
    problems: list[Problem] = []
    for path, found in by_path.items():
        # pydantic reports a union of int and tuple once for each branch. The branch that got past
        # its type check is the one that the author meant; a problem inside a tuple says enough.
        meant = [d for d in found if d["type"] not in ("int_type", "tuple_type")]
        if not meant and path not in folders:
            meant = found
        for details in meant:
            message = _message(details)
            location = list(map(str, details["loc"]))
            if details["type"] == "extra_forbidden" and len(problems) < _MAX_SUGGESTIONS:
                message = _unknown_option(location, root)
            elif details["type"] == "union_tag_not_found":
                message += f"; it is one of {', '.join(_branches_at(location, root))}"
            problems.append(Problem(".".join(path), message, code=problem_code(details["type"])))
    return problems


def problem_code(kind: str) -> ProblemCode:
    """Return the code of a problem, from the type of pydantic's error."""
    if kind in _MISSING:
        return "missing"
    if kind.endswith(("_type", "_from_float", "_parsing")):
        return "wrong_type"
    return _CODES.get(kind, "invalid")


def _with_likely_type(
    document: dict[str, Any], details: Details, root: type[BaseModel]
) -> dict[str, Any]:
    """Return a document in which a part of unknown type has the type that fits best.

    That is the one with the fewest unknown options, then a similar name, then the fewest problems.
    """
    selector = details["ctx"]["discriminator"].strip("'")
    types = _branches_at(list(map(str, details["loc"])), root)
    near = similar(details["input"].get(selector), types)

    def misfits(name: str) -> tuple[int, bool, int]:
        kinds: list[str] = []
        try:
            types[name].model_validate({**details["input"], selector: name})
        except ValidationError as error:
            kinds = [it["type"] for it in error.errors(include_url=False, include_input=False)]
        return kinds.count("extra_forbidden"), name not in near, len(kinds)

    changed = deepcopy(document)
    part: Any = changed
    for name in _path({**details, "type": ""}):
        part = part[int(name) if isinstance(part, list) else name]
    part[selector] = min(types, key=misfits)
    return changed


def did_you_mean(name: object, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the known ones that it may stand for."""
    found = similar(name, known)
    return f"; did you mean {' or '.join(map(quoted, found))}?" if found else ""


def similar(name: object, known: Collection[str]) -> list[str]:
    """Return the known names that an unknown one may stand for: the nearest, or those with it."""
    if not isinstance(name, str) or len(name) > 100:
        return []
    by_key = {_key(each): each for each in known}
    near = get_close_matches(_key(name), by_key, n=1) or [
        key for key in by_key if len(name) > 2 and _key(name) in key
    ]
    return [by_key[key] for key in near[:3]]


def _key(name: str) -> str:
    return name.lower().replace("-", "_")


def _unknown_option(location: list[str], root: type[BaseModel]) -> str:
    """Return the message about an option that its model does not have."""
    *folders, name = location
    branches = _branches_at(folders, root)
    own = branches.get(folders[-1]) if folders else root
    absent: dict[str, str] = getattr(own, "absent_options", {})
    if name in absent:
        return absent[name]
    others = [tag for tag, model in branches.items() if name in model.model_fields]
    if others:
        return f"is not an option here, only with {', '.join(others)}"
    own_branch = folders[1] if folders[:1] == ["training"] and len(folders) > 1 else None
    paths = dict.fromkeys(_paths(root, own_branch))
    elsewhere = [path for path in paths if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"is not an option here; did you mean {' or '.join(elsewhere[:3])}?"
    siblings = list(own.model_fields) if own is not None else []
    of_others = {name for model in branches.values() for name in model.model_fields}
    hint = did_you_mean(name, siblings) or did_you_mean(name, of_others)
    if not hint and not folders:
        # An option of the training part, one level too high.
        below = {path.rpartition(".")[2]: path for path in paths}
        near = [quoted(below[each]) for each in similar(name, below)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"is not an option{hint or '; check its spelling'}"


def _branches_at(location: list[str], root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the models of a place in a document, by what selects them in their union."""
    models = branches = {"": root}
    for part in location:
        fields = [it.model_fields[part] for it in models.values() if part in it.model_fields]
        if fields:
            found = [model for field in fields for model in models_in(field.annotation)]
            models = branches = {_tag(model): model for model in found}
        elif part in models:  # the branch of a union
            models = {part: models[part]}
    return branches


def _paths(root: type[BaseModel], training_type: str | None, folder: str = "") -> Iterator[str]:
    """Yield the path of every option, of one training type or of all."""
    for name, field in root.model_fields.items():
        yield f"{folder}{name}"
        for model in models_in(field.annotation):
            if name != "training" or training_type in (None, _tag(model)):
                yield from _paths(model, None, f"{folder}{name}.")


def _tag(model: type[BaseModel]) -> str:
    """Return the value that selects a model in its union."""
    selectors = (model.model_fields.get(name) for name in ("type", "optimizer_type"))
    return next((str(field.default) for field in selectors if field is not None), "")


def _path(details: Details) -> tuple[str, ...]:
    *folders, last = map(str, details["loc"] or ("",))
    if details["type"] in _NO_BRANCH:
        # pydantic reports the union, though the problem is in the field that selects its branch.
        folders, last = [*folders, last], details["ctx"]["discriminator"].strip("'")
    parts = [part for part in folders if not _BRANCH.match(part)]
    # An unknown option may be spelled like a branch.
    if details["type"] == "extra_forbidden" or not _BRANCH.match(last):
        parts.append(last)
    return tuple(map(shortened, parts))


def _message(details: Details) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "is not an option; check its spelling"
    if kind in _OWN_MESSAGES:
        return str(details["msg"]).removeprefix("Value error, ")
    message = str(details["msg"])
    if kind in _MESSAGES:
        message = _MESSAGES[kind].format_map(context)
    elif kind == "string_pattern_mismatch":
        message = PATTERNS.get(context["pattern"], message)
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        if kind == "union_tag_invalid":
            value = value.get(context["discriminator"].strip("'"))
        names = re.findall(r"'([^']*)'", context.get("expected", context.get("expected_tags", "")))
        message += did_you_mean(value, names) if len(names) > 1 else ""
    else:
        message += _right_form(kind, value)
    if kind == "missing" or isinstance(value, dict | list):
        return message
    is_word = value is None or isinstance(value, bool)
    return f"{message} (got {json.dumps(value) if is_word else quoted(value)})"


def _right_form(kind: str, value: object) -> str:
    """Return how to write a value whose type is wrong, if that is plain."""
    if kind.startswith("int_") and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(str(value).replace("_", ""))
            if number.is_integer():
                return f"; write {int(number)}"
    if kind == "bool_type" and (word := _BOOLEANS.get(str(value).lower())):
        return f"; write {word}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if kind == "string_type" and isinstance(value, dict):
        return "; put text that has ': ' in it in quotes"
    if kind == "tuple_type" and isinstance(value, str):
        return f"; write {json.dumps([shortened(value)], ensure_ascii=False)}"
    return ""
