"""The list of options: every option of a training type with its type, default and description.

It is read from the models' JSON schemas, so that it cannot differ from the validation of a job.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from tasks.jobs.job import TrainingConfig


@dataclass(frozen=True)
class Option:
    """One option of a training type.

    Attributes:
        path: The dotted path below ``training``.
        type: The type in words.
        default: The default as JSON; None if the option is required.
        description: The documentation, on one line.
        only_with: For an option of one branch of a union: the options that select the branch, by
            path, with their values.
        schema: The JSON schema, for forms.
    """

    path: str
    type: str
    default: str | None
    description: str
    only_with: dict[str, str]
    schema: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class TypeOptions:
    """The options of a training type, in the order of its config."""

    name: str
    description: str
    options: tuple[Option, ...]


def training_options() -> dict[str, TypeOptions]:
    """Return the options of every training type, by its name."""
    schema = TypeAdapter(TrainingConfig).json_schema()
    definitions = schema["$defs"]
    types = {}
    for name, reference in _branches(schema):
        model = _resolved(reference, definitions)
        options = tuple(_options(model, definitions, "", {}))
        types[name] = TypeOptions(name, _one_line(model["description"]), options)
    return types


def _options(
    model: dict[str, Any], definitions: dict[str, Any], folder: str, only_with: dict[str, str]
) -> Iterator[Option]:
    required = model.get("required", ())
    for name, form in model["properties"].items():
        path = f"{folder}{name}"
        yield Option(
            path,
            _type(form, definitions),
            None if name in required else _default(form),
            _one_line(form["description"]),
            only_with,
            form,
        )
        yield from _options_within(form, definitions, path, only_with)


def _options_within(
    field: dict[str, Any], definitions: dict[str, Any], path: str, only_with: dict[str, str]
) -> Iterator[Option]:
    if "discriminator" in field:
        selector = field["discriminator"]["propertyName"]
        for value, reference in _branches(field):
            branch = _resolved(reference, definitions)
            selected = only_with | {f"{path}.{selector}": value}
            yield from _options(branch, definitions, f"{path}.", selected)
        return
    for form in field.get("anyOf", [field]):
        if "$ref" in form:
            model = _resolved(form["$ref"], definitions)
            yield from _options(model, definitions, f"{path}.", only_with)


def _branches(union: dict[str, Any]) -> list[tuple[str, str]]:
    """Return each branch's selecting value and its reference, in the order of the models."""
    order = [branch["$ref"] for branch in union["oneOf"]]
    mapping: dict[str, str] = union["discriminator"]["mapping"]
    return sorted(mapping.items(), key=lambda branch: order.index(branch[1]))


def _resolved(reference: str, definitions: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = definitions[reference.rpartition("/")[2]]
    return model


def _default(field: dict[str, Any]) -> str:
    default = field["default"]
    if isinstance(default, dict) and "discriminator" in field:
        # Only the branch: its defaults are listed with its options.
        selector = field["discriminator"]["propertyName"]
        default = {selector: default[selector]}
    return json.dumps(default)


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "discriminator" in field:
        return "mapping: " + " or ".join(value for value, _ in _branches(field))
    if "anyOf" in field:
        return " or ".join(_type(form, definitions) for form in field["anyOf"])
    if "$ref" in field:
        return "mapping"
    if "const" in field or "enum" in field:
        return " or ".join(json.dumps(value) for value in field.get("enum", [field.get("const")]))
    kind = field["type"]
    if kind == "array":
        if "prefixItems" in field:
            return "list of " + " and ".join(_type(f, definitions) for f in field["prefixItems"])
        return f"list of {_type(field['items'], definitions)}"
    if kind == "object":
        return "mapping of text to text"
    return _KINDS[kind] + _bounds(field)


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "from",
    "exclusiveMaximum": "below",
    "maximum": "to",
}
# The limit of all whole numbers (``strict_model``), which is not worth showing.
_NO_BOUND = 2**63 - 1


def _bounds(field: dict[str, Any]) -> str:
    bounds = [
        f" {word} {field[name]:g}"
        for name, word in _BOUNDS.items()
        if name in field and field[name] != _NO_BOUND
    ]
    return "".join(bounds)


def _one_line(text: str) -> str:
    return " ".join(text.split())
