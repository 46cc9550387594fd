"""JSON schemas, draft 2020-12, of the documents that a fleet reads and writes.

Generated from the models that the fleet itself uses. A schema cannot express rules over several
fields, such as exactly one of two options. So the fleet refuses every document that a schema
refuses, except for a missing ``type``, and may refuse one that a schema accepts.
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
# Name to model, and whether the fleet reads (validation) or writes (serialization) it.
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
# Keywords of a whole model that its partial version drops.
_WHOLE_ONLY = ("required", "discriminator", "default", "description", "title")


def models() -> dict[str, Schema]:
    """Return the schema of each root by its name; every ``type`` is required."""
    schemas = {}
    for name, (model, mode) in _ROOTS.items():
        schema = TypeAdapter(model).json_schema(mode=mode)
        _require_types(schema)
        _describe_codes(schema)
        if mode == "serialization":
            _require_all(schema)
        schemas[name] = schema
    schemas["Manifest"]["properties"]["job"] |= {"$ref": f"{_FILES[_JOB]}.schema.json"}
    return schemas


def schema_files() -> dict[str, str]:
    """Return the text of each schema file by its name."""
    schemas = models()
    schemas[_JOB] = _with_presets(schemas[_JOB])
    return {
        f"{_FILES[name]}.schema.json": _text(
            {"$schema": _DIALECT, "$id": f"{_FILES[name]}.schema.json", "title": name, **schema}
        )
        for name, schema in schemas.items()
    }


def component_schemas(prefix: str) -> dict[str, Schema]:
    """Return the schema of each model by its name, as an OpenAPI description has them.

    ``JobRequest`` is what submit takes: a ``TrainingJob``, or a ``PresetJob``, whose ``training``
    may leave out what its preset has.

    Args:
        prefix: What a reference begins with before the model's name.
    """
    schemas: dict[str, Schema] = {}
    for name in ("JobEvent", "Webhook", "Manifest", _JOB):
        root = models()[name]
        schemas |= {**root.pop("$defs"), name: root}
    del schemas["Manifest"]["properties"]["job"]["type"]
    job, definitions = schemas[_JOB], models()[_JOB]["$defs"]
    schemas |= {f"Partial{name}": _partial(schema) for name, schema in definitions.items()}
    schemas["PartialTraining"] = {
        "description": "Some options of a training run; the others have a preset's values.",
        **_partial(job["properties"]["training"]),
    }
    preset = {"description": job["properties"]["preset"]["description"], "type": "string"}
    schemas["PresetJob"] = {
        **job,
        "description": "A training job that leaves out what its preset has.",
        "title": "PresetJob",
        "properties": {
            **job["properties"],
            "preset": preset | {"enum": [*preset_names(), *ALIASES]},
            "training": {"$ref": "#/$defs/PartialTraining"},
        },
        "required": ["preset"],
    }
    schemas["JobRequest"] = {
        "description": "A job to submit.",
        "anyOf": [{"$ref": "#/$defs/PresetJob"}, {"$ref": f"#/$defs/{_JOB}"}],
    }
    for part in _parts(schemas):
        for branch in part.get("anyOf", ()):
            # openapi-python-client reads a choice of an enum, and not of a constant.
            if "const" in branch:
                branch["enum"] = [branch.pop("const")]
        # Generated clients would demand or send what has a default.
        default = part.pop("default", None)
        if default is not None and "description" in part:
            part["description"] += f"\n\nDefault: `{json.dumps(default)}`."
    text = json.dumps(schemas).replace(f"{_FILES[_JOB]}.schema.json", f"#/$defs/{_JOB}")
    referring: dict[str, Schema] = json.loads(text.replace("#/$defs/", prefix))
    return referring


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _require_types(schema: Schema) -> None:
    """Require each union's ``type``: else two branches could accept the same document."""
    definitions = schema.get("$defs", {})
    for part in _parts(schema):
        if isinstance(part.get("discriminator"), dict):
            selector = part["discriminator"]["propertyName"]
            for reference in part["discriminator"]["mapping"].values():
                model = definitions[_name(reference)]
                model["required"] = sorted({*model.get("required", ()), selector})


def _describe_codes(schema: Schema) -> None:
    """Give each error code its meaning."""
    code = schema.get("$defs", {}).get("ErrorCode")
    if code is not None:
        del code["enum"]
        code["oneOf"] = [{"const": c, "description": meaning} for c, meaning in ERROR_CODES.items()]


def _require_all(schema: Schema) -> None:
    """Require every field, as the fleet writes them all; allow more, from later versions."""
    for part in _parts(schema):
        if "properties" in part:
            part["required"] = list(part["properties"])
            part.pop("additionalProperties", None)


def _with_presets(schema: Schema) -> Schema:
    """Return the job's schema with every ``training`` option optional if a preset is named."""
    schema = deepcopy(schema)
    training = schema["properties"]["training"]
    names = [*preset_names(), *ALIASES]
    schema["properties"]["preset"] = {
        **schema["properties"]["preset"],
        "anyOf": [{"enum": names}, {"type": "null"}],
    }
    partial = {
        f"Partial{name}": _partial(definition) for name, definition in schema["$defs"].items()
    }
    schema["$defs"] |= partial
    schema["properties"]["training"] = {"description": training["description"]}
    schema["required"] = []
    schema["if"] = {"required": ["preset"], "properties": {"preset": {"type": "string"}}}
    schema["then"] = {"properties": {"training": _partial(training)}}
    schema["else"] = {"required": ["training"], "properties": {"training": training}}
    return schema


def _partial(schema: Any) -> Any:
    """Return a schema with everything optional, at any depth."""
    if isinstance(schema, list):
        return [_partial(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k not in _WHOLE_ONLY}
    # Without a type, a document may match several branches.
    renamed = {"anyOf" if k == "oneOf" else k: _partial(v) for k, v in kept.items()}
    if "$ref" in renamed:
        renamed["$ref"] = schema["$ref"].replace("#/$defs/", "#/$defs/Partial")
    return renamed


def _parts(schema: Any) -> list[Schema]:
    """Return a schema and all schemas in it."""
    inner = schema.values() if isinstance(schema, dict) else schema
    if not isinstance(schema, dict | list):
        return []
    own = [schema] if isinstance(schema, dict) else []
    return own + [part for item in inner for part in _parts(item)]


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]
