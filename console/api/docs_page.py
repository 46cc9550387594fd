"""The page that shows the API's description: HTML without scripts and outside requests."""

import base64
import hashlib
import json
import re
import shlex
from collections import defaultdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from console.api.openapi import ERRORS, Schema, operations, reference

_FOLDER = files("console.api")
_STYLE = (_FOLDER / "docs_page.css").read_text("utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page: its one style sheet, and nothing else."""

_CODE = re.compile(r"`+([^`]+)`+")
_PARAGRAPHS = re.compile(r"\n\s*\n")
# Values of parameters in the examples; the shell replaces variables in double quotes.
_EXAMPLES = {"job_id": "$JOB", "upload_id": "$UPLOAD", "name": "my-cat.safetensors", "number": "0"}
_HEADERS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Upload-Length": "1000000"}
_BODIES = {
    "application/json": ["--json", "@job.json"],
    "multipart/form-data": ["-F", "file=@images.zip"],
}


def docs_page(document: Schema) -> str:
    """Return the page for a description of the API."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"prose": _prose, "type": _type, "body_type": _body_type}
    by_tag: dict[str, list[Schema]] = defaultdict(list)
    for method, path, operation in operations(document):
        by_tag[operation["tags"][0]].append(_shown(method, path, operation))
    shown = {
        name: {"description": "", "properties": {}, "required": (), **schema}
        for name, schema in document["components"]["schemas"].items()
        if not name.startswith("Partial") or name == "PartialTraining"
    }
    for schema in shown.values():
        schema["properties"] = {
            name: {"description": "", **field} for name, field in schema["properties"].items()
        }
    server = document["servers"][0]
    variables = {name: it["default"] for name, it in server["variables"].items()}
    template = environment.from_string((_FOLDER / "docs_page.html").read_text("utf-8"))
    return template.render(
        document=document,
        operations=by_tag,
        schemas=shown,
        errors=ERRORS,
        problem=reference("ProblemDocument"),
        server=server["url"].format(**variables),
        style=Markup(_STYLE),
    )


def _shown(method: str, path: str, operation: Schema) -> Schema:
    """Return an operation with what the page shows of it."""
    succeeded = {status: it for status, it in operation["responses"].items() if status < "4"}
    parameters = [{"description": "", **it} for it in operation.get("parameters", ())]
    for parameter in parameters:
        parameter["schema"] = {"description": "", **parameter["schema"]}
    body = operation.get("requestBody")
    if body is not None:
        contents = {kind: {"example": None, **it} for kind, it in body["content"].items()}
        body = {**body, "content": contents}
    return {
        **operation,
        "method": method.upper(),
        "path": path,
        "parameters": parameters,
        "requestBody": body,
        "scopes": [scope for it in operation.get("security", ()) for scope in it.get("key", ())],
        "shown_responses": [
            (status, {"content": {}, "headers": {}, **it}) for status, it in succeeded.items()
        ],
        "errors": [
            status for status in operation["responses"] if status.isdigit() and status > "4"
        ],
        "curl": _curl(method, path, operation),
    }


def _curl(method: str, path: str, operation: Schema) -> str:
    """Return a command that sends a request for an operation."""
    words = ["curl"]
    if operation.get("security"):
        words += ["-H", '"Authorization: Bearer $KEY"']
    body = operation.get("requestBody")
    if method == "head":
        words.append("--head")
    elif method != ("get" if body is None else "post"):
        words += ["-X", method.upper()]
    for it in operation.get("parameters", ()):
        if it["in"] == "header" and it["required"]:
            words += ["-H", shlex.quote(f"{it['name']}: {_HEADERS[it['name']]}")]
    if body is not None:
        [kind] = body["content"]
        chunk = ["-H", shlex.quote(f"Content-Type: {kind}"), "--data-binary", "@images.zip"]
        words += _BODIES.get(kind, chunk)
    path = re.sub(r"\{(\w+)\}", lambda it: _EXAMPLES.get(it[1], f"${it[1].upper()}"), path)
    # ${JOB}:cancel, for shells to which $JOB:c is something else.
    path = re.sub(r"\$([A-Z_]+):", r"${\1}:", path)
    return " ".join([*words, f'"$API{path}"'])


def _prose(text: str) -> Markup:
    """Return text as paragraphs, with its code marked."""
    paragraphs = [
        Markup("<p>{}</p>").format(
            Markup(_CODE.sub(r"<code>\1</code>", str(escape(paragraph.strip()))))
        )
        for paragraph in _PARAGRAPHS.split(text.strip())
        if paragraph.strip()
    ]
    return Markup().join(paragraphs)


def _body_type(content: Schema) -> Markup:
    """Return the type of a body, or of the events in it."""
    if "itemSchema" in content:
        data = content["itemSchema"]["properties"]["data"]
        return Markup("stream of {}").format(_type(data["contentSchema"]))
    return _type(content["schema"])


def _type(schema: Schema) -> Markup:
    """Return the type of a value in words, with links to schemas."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        shown = name.removeprefix("Partial") if name != "PartialTraining" else name
        return Markup('<a href="#schema-{}">{}</a>').format(shown, name)
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        return Markup(" or ").join(_type(branch) for branch in branches)
    for values in ([schema["const"]] if "const" in schema else None, schema.get("enum")):
        if values:
            return Markup(" | ").join(_code(json.dumps(value)) for value in values)
    if schema.get("format") == "binary":
        return Markup("bytes")
    if schema.get("type") == "array":
        items = schema.get("items") or {"anyOf": schema.get("prefixItems", [{}])}
        return Markup("list of {}").format(_type(items))
    if isinstance(schema.get("additionalProperties"), dict):
        return Markup("mapping to {}").format(_type(schema["additionalProperties"]))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema]
    return escape(" ".join([schema.get("format") or schema.get("type", "any value"), *limits]))


def _code(text: Any) -> Markup:
    return Markup("<code>{}</code>").format(text)
