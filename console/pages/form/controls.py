"""Controls of the form: one for each option, derived from its schema.

A control knows how to show a value and how to read what the user typed. The job's models alone
decide what is valid.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from tasks.jobs.options import Option, training_options


class Kind(StrEnum):
    """Kind of a control."""

    CHOICE = "choice"
    SWITCH = "switch"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    LINES = "lines"
    JSON = "json"


@dataclass(frozen=True)
class Control:
    """A control.

    Attributes:
        path: Dotted path of the option below ``training``.
        kind: Kind of the control.
        choices: Values to choose from; ``""`` is null.
        nullable: Whether an empty control is null.
        default: The option's default; None when it is null or the option is required.
        required: Whether the option has no default.
        type: Type of the value, in words.
        help: Description of the option.
        only_with: The options that select the option's branch, with their values.
        group: Heading of the option's group.
    """

    path: str
    kind: Kind
    choices: tuple[str, ...]
    nullable: bool
    default: Any
    required: bool
    type: str
    help: str
    only_with: dict[str, str]
    group: str

    def read(self, typed: Any) -> Any:
        """Return the value that the user typed; the models refuse text that has no value."""
        if not isinstance(typed, str):
            return typed
        if typed.strip() == "" and self.nullable:
            return None
        match self.kind:
            case Kind.INTEGER:
                return _number(typed, int)
            case Kind.NUMBER:
                return _number(typed, float)
            case Kind.LINES:
                return [line.strip() for line in typed.splitlines() if line.strip()]
            # The choices of some options are numbers and truth values.
            case Kind.JSON | Kind.CHOICE:
                try:
                    return json.loads(typed)
                except (ValueError, RecursionError):
                    return typed
            case _:
                return typed

    def show(self, value: Any) -> str | bool:
        """Return a value as the control shows it."""
        if self.kind == Kind.SWITCH:
            return bool(value)
        if value is None:
            return ""
        if self.kind == Kind.LINES and isinstance(value, list | tuple):
            return "\n".join(map(str, value))
        return _shown(value)


@cache
def controls(training_type: str) -> tuple[Control, ...]:
    """Return the controls of a training type, in the order of its options.

    An option that only contains others has none; a discriminator has one, with all its branches.
    """
    options = training_options()[training_type].options
    by_path: dict[tuple[str, str], Control] = {}
    for option in options:
        control = _control(option, options)
        if control is not None:
            # Every branch names its discriminator, which gets one control.
            only_with = {k: v for k, v in control.only_with.items() if k != option.path}
            by_path.setdefault((option.path, str(only_with)), control)
    return tuple(by_path.values())


_NO_CHOICES: tuple[str, ...] = ()


def _control(option: Option, options: tuple[Option, ...]) -> Control | None:
    schema, nullable = _without_null(option.schema)
    kind, choices = Kind.SWITCH, _NO_CHOICES
    if "oneOf" in schema and not nullable:
        return None
    if option.path == "type" or ("$ref" in schema and not nullable):
        return None
    if "$ref" not in schema:
        kind, choices = _kind_and_choices(option, schema, options)
    if nullable and kind == Kind.CHOICE:
        choices = ("", *choices)
    only_with = {k: v for k, v in option.only_with.items() if k != option.path}
    return Control(
        path=option.path,
        kind=kind,
        choices=choices,
        nullable=nullable,
        default=None if option.default is None else json.loads(option.default),
        required=option.default is None,
        type=option.type,
        help=option.description.replace("``", ""),
        only_with=only_with,
        group=group_of(option.path),
    )


def _without_null(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    variants = schema.get("anyOf")
    if variants is None:
        return schema, False
    others = [variant for variant in variants if variant.get("type") != "null"]
    return (others[0] if len(others) == 1 else schema), len(others) < len(variants)


def _kind_and_choices(
    option: Option, schema: dict[str, Any], options: tuple[Option, ...]
) -> tuple[Kind, tuple[str, ...]]:
    if "const" in schema:
        values = {branch.schema["const"]: None for branch in options if branch.path == option.path}
        return Kind.CHOICE, tuple(values)
    if "enum" in schema:
        return Kind.CHOICE, tuple(schema["enum"])
    if {"type": "boolean"} in schema.get("anyOf", ()):
        return Kind.CHOICE, tuple(map(_shown, _values_in(schema["anyOf"])))
    match schema.get("type"):
        case "boolean":
            return Kind.SWITCH, ()
        case "integer":
            return Kind.INTEGER, ()
        case "number":
            return Kind.NUMBER, ()
        case "string":
            return Kind.TEXT, ()
        case "array" if schema.get("items") == {"type": "string"}:
            return Kind.LINES, ()
        case _:
            return Kind.JSON, ()


_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def _number(typed: str, kind: type[int] | type[float]) -> int | float | str:
    text = typed.strip()
    # A decimal comma, unless it may separate thousands: "1,000" is no 1.
    if kind is float and "." not in text and not _THOUSANDS.fullmatch(text):
        text = text.replace(",", ".")
    try:
        return kind(text)
    except (ValueError, OverflowError):
        return typed


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


def _values_in(schemas: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield every value of schemas that have few."""
    for schema in schemas:
        match schema:
            case {"type": "boolean"}:
                yield from (False, True)
            case {"minimum": first, "maximum": last}:
                yield from range(first, last + 1)
            case {"const": value}:
                yield value


def label_of_choice(choice: str) -> str:
    """Return a choice as people read it."""
    return {"": "none", "false": "off", "true": "on"}.get(choice, choice)


GROUPS = (
    "Optimizer and learning rate",
    "Length and checkpoints",
    "Memory and speed",
    "What is trained",
    "Noise and loss",
    "Images and captions",
    "Samples",
    "Model files",
    "Output",
)
"""Headings of the groups, in order."""

_GROUP_BY_PREFIX = {
    "optimizer": 0, "lr_": 0, "max_grad": 0, "text_encoder_learning": 0, "unet_learning": 0,
    "transformer_learning": 0,
    "max_": 1, "save_every": 1, "seed": 1,
    "cache": 2, "weight_dtype": 2, "mixed": 2, "gradient": 2, "quant": 2, "xformers": 2,
    "train_batch_size": 2, "compile": 2, "deterministic": 2,
    "train_": 3, "lora_rank": 3, "lora_scale": 3, "flux_lora": 3, "unet_lora": 3,
    "text_encoder_lora": 3, "num_vectors": 3, "placeholder": 3, "init": 3, "use_ema": 3, "ema": 3,
    "timestep": 4, "discrete": 4, "sigmoid": 4, "guidance": 4, "min_snr": 4, "prediction": 4,
    "data_loader": 5, "use_masks": 5, "clip_tok": 5, "t5_tok": 5, "base_emb": 5,
    "valid": 6, "num_valid": 6, "negative": 6, "enable_cpu": 6,
    "model": 7, "single_file": 7, "transformer_path": 7, "text_encoder_": 7, "hf_": 7, "vae_": 7,
}  # fmt: skip


def group_of(path: str) -> str:
    """Return the heading of an option's group."""
    prefixes = [prefix for prefix in _GROUP_BY_PREFIX if path.startswith(prefix)]
    return GROUPS[_GROUP_BY_PREFIX[max(prefixes, key=len)]] if prefixes else GROUPS[-1]
