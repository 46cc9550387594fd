"""TypeScript of what others send the fleet and read of it, made from the JSON schemas."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from tasks.contract import ENDED, ERROR_CODES, STAGES, STATUSES
from tasks.jobs.presets import ALIASES, preset_names
from tasks.schemas.form import INTERFACES, Field, memory_presets, table
from tasks.schemas.json_schema import Schema, models

_TYPES = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}
_MOST = 100


def typescript_file() -> str:
    """The whole of ``training-worker.ts``."""
    found = models()
    parts = [
        "// Made from the models that do the work by `training-worker contract`; do not edit it.",
        *_constants(),
        *_declarations(found),
        *(_form_part(name, fields, found) for name, fields in INTERFACES.items()),
        _memory_part(),
        f"const FORM: Record<TrainingType, FormTable> = {_json(table())};",
        (files("tasks.schemas") / "form.ts").read_text("utf-8").strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _constants() -> Iterator[str]:
    yield f"/** A job's stages, in their order. */\nexport const STAGES = {_json(STAGES)} as const;"
    yield "export type Stage = (typeof STAGES)[number];"
    yield f"/** What a job's status may be. */\nexport const STATUSES = {_json(STATUSES)} as const;"
    yield "export type JobStatus = keyof typeof STATUSES;"
    yield (
        "/** Those after which nothing more happens, unless somebody replays a failed job. */\n"
        f"export const ENDED: readonly JobStatus[] = {_json(ENDED)};"
    )
    yield f"/** Why a job failed. */\nexport const ERROR_CODES = {_json(ERROR_CODES)} as const;"
    yield "export type ErrorCode = keyof typeof ERROR_CODES;"
    names = [*preset_names(), *ALIASES]
    yield f"export type PresetName = {' | '.join(map(_json, names))};"


def _declarations(found: dict[str, Schema]) -> Iterator[str]:
    declared: dict[str, str] = {"ErrorCode": ""}
    for root, schema in found.items():
        inner = schema.get("$defs", {})
        own = {k: v for k, v in schema.items() if k != "$defs"}
        for name, model in {**inner, root: own}.items():
            text = _declaration(name, model)
            if declared.setdefault(name, text) != text and name != "ErrorCode":
                raise ValueError(f"two models are called {name}")
    yield from filter(None, declared.values())


def _declaration(name: str, schema: Schema) -> str:
    comment = _comment(schema.get("description"), "")
    if "properties" not in schema:
        return f"{comment}export type {name} = {_type(schema)};"
    required = schema.get("required", ())
    lines = [
        f"{_comment(_meaning(field), '  ')}  {key}{'' if key in required else '?'}: {_type(field)};"
        for key, field in schema["properties"].items()
    ]
    return "\n".join([f"{comment}export interface {name} {{", *lines, "}"])


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        reference: str = schema["$ref"]
        return "TrainingJob" if reference.endswith(".json") else reference.rpartition("/")[2]
    if "const" in schema:
        return _json(schema["const"])
    forms = schema.get("anyOf") or schema.get("oneOf")
    if forms:
        return " | ".join(dict.fromkeys(map(_type, forms)))
    if "enum" in schema:
        return " | ".join(map(_json, schema["enum"]))
    if schema["type"] == "array":
        if "prefixItems" not in schema:
            return f"({_type(schema['items'])})[]"
        items = schema["prefixItems"]
        labelled = all("title" in item for item in items)
        return f"[{', '.join(_item(item, labelled) for item in items)}]"
    if schema["type"] == "object":
        values = schema.get("additionalProperties")
        return f"Record<string, {_type(values) if isinstance(values, dict) else 'unknown'}>"
    return _TYPES[schema["type"]]


def _item(schema: Schema, labelled: bool) -> str:
    return f"{schema['title'].lower()}: {_type(schema)}" if labelled else _type(schema)


def _meaning(field: Schema) -> str:
    told = str(field.get("description", ""))
    if "default" in field and field["default"] is not None:
        told += f"\n@default {_json(field['default'])}"
    return told.strip()


def _comment(text: str | None, indent: str) -> str:
    if not text:
        return ""
    lines = text.replace("``", "`").replace("*/", "* /").splitlines()
    if len(lines) == 1:
        return f"{indent}/** {lines[0]} */\n"
    told = "\n".join(f"{indent} * {line}".rstrip() for line in lines)
    return f"{indent}/**\n{told}\n{indent} */\n"


def _form_part(name: str, fields: tuple[Field, ...], found: dict[str, Schema]) -> str:
    lines = []
    for field in fields:
        option = _option(found, field.targets[0].path)
        kind = field.type or _type(option).removesuffix(" | null")
        lines.append(f"{_comment(_meaning(option), '  ')}  {field.name}: {kind};")
    return "\n".join([f"export interface {name} {{", *lines, "}"])


def _option(found: dict[str, Schema], path: str) -> Schema:
    """What a FLUX LoRA's config says of an option; of ``type``, what any says."""
    if path == "type":
        return {"description": "What is trained.", "enum": list(table())}
    definitions = found["TrainingJob"]["$defs"]
    model: Schema = definitions["FluxLoraConfig"]
    *folders, last = path.split(".")
    for folder in folders:
        model = definitions[_type(model["properties"][folder]).split(" | ")[0]]
    option: Schema = model["properties"][last]
    return option


def _memory_part() -> str:
    lines = [
        f"  {_json(name)}: {{ {', '.join(f'{k}: {_json(v)}' for k, v in values.items())} }};"
        for name, values in memory_presets().items()
    ]
    told = "/** What the presets for FLUX set, by the memory of the GPU. */"
    constant = f"export const MEMORY_PRESETS: MemoryPresets = {_json(memory_presets())};"
    return "\n".join([told, "export interface MemoryPresets {", *lines, "}"]) + f"\n\n{constant}"


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST else json.dumps(value, ensure_ascii=False, indent=2)
