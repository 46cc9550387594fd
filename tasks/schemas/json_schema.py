"""JSON schemas, draft 2020-12, of what others send the fleet and read of it.

Made from the models that do the work, so that they cannot differ from it. What takes more than one
field to tell (exactly one of two options, say) is beyond them: what a schema refuses is refused
here too, but for a ``type`` that is left out, and what it takes may still be refused.
"""

import json
from copy import deepcopy
from typing import Any, Literal

from pydantic import TypeAdapter

from tasks.contract import ERROR_CODES
from tasks.events import JobEvent
from tasks.jobs.job import TrainingJob
from tasks.jobs.presets import ALIASES, preset_names
from tasks.schemas.documents import JobResult, KnownJob, Manifest, RaisedError, Webhook

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_JOB = "TrainingJob"
# What a name stands for, and whether it is sent to the fleet or read of it.
_ROOTS: dict[str, tuple[Any, Literal["validation", "serialization"]]] = {
    _JOB: (TrainingJob, "validation"),
    "JobEvent": (JobEvent, "serialization"),
    "RaisedError": (RaisedError, "serialization"),
    "SubmitResult": (JobResult | KnownJob, "serialization"),
    "Webhook": (Webhook, "serialization"),
    "Manifest": (Manifest, "serialization"),
}
_FILES = {
    _JOB: "training_job",
    "JobEvent": "event",
    "RaisedError": "error",
    "SubmitResult": "result",
    "Webhook": "webhook",
    "Manifest": "manifest",
}


def models() -> dict[str, Schema]:
    """Every root's schema by its name, as its model says, each ``type`` required."""
    found = {}
    for name, (model, mode) in _ROOTS.items():
        schema = TypeAdapter(model).json_schema(mode=mode)
        _require_types(schema)
        _tell_codes(schema)
        if mode == "serialization":
            _as_written(schema)
        found[name] = schema
    found["Manifest"]["properties"]["job"] |= {"$ref": f"{_FILES[_JOB]}.schema.json"}
    return found


def schema_files() -> dict[str, str]:
    """Each schema as a file: its name, and its text."""
    found = models()
    found[_JOB] = _with_presets(found[_JOB])
    return {
        f"{_FILES[name]}.schema.json": _text(
            {"$schema": _DIALECT, "$id": f"{_FILES[name]}.schema.json", "title": name, **schema}
        )
        for name, schema in found.items()
    }


_ONLY_WHOLE = ("required", "discriminator", "default", "description", "title")


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _require_types(schema: Schema) -> None:
    """Without it, two branches of a union may take the same document."""
    definitions = schema.get("$defs", {})
    for part in _parts(schema):
        if isinstance(part.get("discriminator"), dict):
            selector = part["discriminator"]["propertyName"]
            for reference in part["discriminator"]["mapping"].values():
                model = definitions[_name(reference)]
                model["required"] = sorted({*model.get("required", ()), selector})


def _tell_codes(schema: Schema) -> None:
    code = schema.get("$defs", {}).get("ErrorCode")
    if code is not None:
        del code["enum"]
        code["oneOf"] = [{"const": c, "description": meaning} for c, meaning in ERROR_CODES.items()]


def _as_written(schema: Schema) -> None:
    """Every field is there; later versions may write more."""
    for part in _parts(schema):
        if "properties" in part:
            part["required"] = list(part["properties"])
            part.pop("additionalProperties", None)


def _with_presets(schema: Schema) -> Schema:
    """The job's schema, where a preset stands in for all that ``training`` leaves out."""
    schema = deepcopy(schema)
    training = schema["properties"]["training"]
    names = [*preset_names(), *ALIASES]
    schema["properties"]["preset"] = {
        **schema["properties"]["preset"],
        "anyOf": [{"enum": names}, {"type": "null"}],
    }
    partial = {f"Partial{name}": _partial(it) for name, it in schema["$defs"].items()}
    schema["$defs"] |= partial
    schema["properties"]["training"] = {"description": training["description"]}
    schema["required"] = []
    schema["if"] = {"required": ["preset"], "properties": {"preset": {"type": "string"}}}
    schema["then"] = {"properties": {"training": _partial(training)}}
    schema["else"] = {"required": ["training"], "properties": {"training": training}}
    return schema


def _partial(schema: Any) -> Any:
    """A schema of which everything may be left out, at any depth."""
    if isinstance(schema, list):
        return [_partial(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    left = {k: v for k, v in schema.items() if k not in _ONLY_WHOLE}
    # Without a type, several branches may take what there is.
    renamed = {"anyOf" if k == "oneOf" else k: _partial(v) for k, v in left.items()}
    if "$ref" in renamed:
        renamed["$ref"] = schema["$ref"].replace("#/$defs/", "#/$defs/Partial")
    return renamed


def _parts(schema: Any) -> list[Schema]:
    """The schema and all schemas in it."""
    inner = schema.values() if isinstance(schema, dict) else schema
    if not isinstance(schema, dict | list):
        return []
    found = [schema] if isinstance(schema, dict) else []
    return found + [part for item in inner for part in _parts(item)]


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]
